//! `[log]`: how `run` logs.

use serde::Deserialize;

use crate::base::logging;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    format: Option<logging::Format>,
    level: Option<LogLevel>,
}

/// Below debug, the clients' libraries would log what passes through them.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// How `run` logs.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    pub format: logging::Format,
    pub level: log::LevelFilter,
}

pub(super) fn resolve_log(raw: &RawLog) -> Log {
    Log {
        format: raw.format.unwrap_or_default(),
        level: match raw.level.unwrap_or(LogLevel::Info) {
            LogLevel::Error => log::LevelFilter::Error,
            LogLevel::Warn => log::LevelFilter::Warn,
            LogLevel::Info => log::LevelFilter::Info,
            LogLevel::Debug => log::LevelFilter::Debug,
        },
    }
}
