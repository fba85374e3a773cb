//! A Redis of one test's own, which may be stopped, killed and started again without anybody else noticing.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

use std::path::Path;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::metrics::free_port;
use crate::world::wait_for;

/// It keeps everything that it acknowledged.
pub(crate) struct Redis {
    /// `None` while it is not there.
    child: Option<Child>,
    pub(crate) port: u16,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// With arguments beside its own.
    pub(crate) fn start_with(arguments: &[&str]) -> Redis {
        let mut redis = Redis::absent();
        redis.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        redis.restart();
        redis
    }

    /// One that is not there yet.
    pub(crate) fn absent() -> Redis {
        Redis { child: None, port: free_port(), arguments: Vec::new(), dir: tempfile::tempdir().unwrap() }
    }

    /// Returns once it answers.
    pub(crate) fn restart(&mut self) {
        let log = std::fs::File::create(self.dir().join("log")).unwrap();
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"])
            .args(["--appendfsync", "everysec", "--save", "", "--dir"])
            .arg(self.dir())
            .args(&self.arguments)
            .stdout(log)
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        wait_for("Redis to answer", 60, || self.ask(&["PING"]).is_some());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    /// `behind` is a database, or a channel for whoever takes one there.
    pub(crate) fn url(&self, behind: &str) -> String {
        format!("redis://127.0.0.1:{}/{behind}", self.port)
    }

    pub(crate) fn connection(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url(""))?.get_connection()
    }

    /// The answer to a command; `None` where it does not answer, or refuses.
    pub(crate) fn ask(&self, command: &[&str]) -> Option<redis::Value> {
        redis::cmd(command[0]).arg(&command[1..]).query(&mut self.connection().ok()?).ok()
    }

    /// Its directory, which goes with it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
