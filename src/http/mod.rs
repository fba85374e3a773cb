//! HTTP/1.1 on an event loop of our own: one thread with one `epoll`, no async runtime, for every port that rowmill opens.
//!
//! hyper speaks the protocol. A connection of hyper's is a plain future, and the loop polls it when its socket is ready or when
//! what its answer waits for has become known; no waker crosses a thread. Ours is what stands around it: who is let in and for
//! how long ([`event_loop`], [`conn`]), which bytes hyper sees ([`wire`], [`desk`]), what a service sees ([`exchange`]), what
//! it answers ([`reply`]), and where connections come from ([`listen`], [`tls`]). It knows no verb.

pub mod limits;
pub mod wire;
pub mod coding;
pub mod listen;
pub mod tls;
pub mod reply;
mod desk;
pub mod exchange;
pub mod service;
mod conn;
pub mod event_loop;
