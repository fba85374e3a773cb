//! HTTP/1.1 from our own threads: hyper speaks the protocol, a loop of ours moves the bytes. No async runtime: a connection is a
//! plain future that is polled when epoll says that its socket is ready.

pub mod target;
pub mod wire;
pub mod answer;
pub mod client;
