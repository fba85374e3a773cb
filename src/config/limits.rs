//! `memory_max` and `message_max`: what is held in memory.

use anyhow::{Result, bail};

use super::units::Bytes;

/// Enough for the largest batches that still gain speed, and leaves a process of 128 MB room for librdkafka and itself.
pub(super) fn default_memory_max() -> Bytes {
    Bytes(24 << 20)
}

/// Kafka's own default for `max.message.bytes` is 1 MiB; room for topics that were raised a little.
pub(super) fn default_message_max() -> Bytes {
    Bytes(4 << 20)
}

/// Batches count their bytes in 32 bits, and may grow to the whole budget.
const MEMORY_MAX_BYTES: usize = 1 << 30;

/// What one batch at least holds in hand, raw, encoded and in librdkafka, as a multiple of its largest record.
const MEMORY_PER_MESSAGE: usize = 5;

#[derive(Debug, Clone)]
pub struct Limits {
    /// Raw and encoded records in hand.
    pub memory_max_bytes: usize,
    /// A larger record is set aside.
    pub message_max_bytes: usize,
}

/// What a process needs beside `memory_max`: the Kafka client's queue and one response, connections, code, and what allocators
/// keep. Measured: a drain at full speed peaks at about 100 MB more than `memory_max`.
const BESIDE_BYTES: u64 = 112 << 20;

impl Limits {
    /// What a process holds at most while no batch unpacks to more than a few megabytes. A large one comes on top: the Kafka
    /// client unpacks it whole, and its largest record is held once more.
    pub fn process_bytes(&self) -> u64 {
        self.memory_max_bytes as u64 + BESIDE_BYTES
    }
}

pub(super) fn resolve_limits(memory_max: Bytes, message_max: Bytes) -> Result<Limits> {
    let limits = Limits { memory_max_bytes: memory_max.0, message_max_bytes: message_max.0 };
    if limits.memory_max_bytes < limits.message_max_bytes.saturating_mul(MEMORY_PER_MESSAGE) {
        bail!(
            "memory_max ({} bytes) must be at least {MEMORY_PER_MESSAGE} times message_max ({} bytes): one record is held raw, \
             encoded and in the Kafka client at the same time",
            limits.memory_max_bytes,
            limits.message_max_bytes
        );
    }
    if limits.memory_max_bytes > MEMORY_MAX_BYTES {
        bail!("memory_max must be at most 1GB: more only means that more is read again after a crash");
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn memory_holds_several_of_the_largest_records() {
        check("memory_max = \"10MB\"", Err("at least 5 times message_max"));
    }
}
