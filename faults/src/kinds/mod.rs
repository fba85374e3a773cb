//! Every kind of fault that the campaign makes on purpose, beside the killing that goes on all the time.

mod kafka;
mod network;
mod postgres;
mod process;
mod tables;
mod take_over;

use crate::campaign::{Campaign, Kind};

/// The kinds that this machine can make; `campaign` says whether a file system could be mounted and the clock be set.
pub(crate) fn enabled(campaign: &Campaign) -> Vec<Kind> {
    let mut kinds = Vec::new();
    kinds.extend(process::KINDS);
    kinds.extend(kafka::KINDS);
    kinds.extend(postgres::KINDS);
    kinds.extend(tables::KINDS);
    kinds.extend(network::KINDS);
    if campaign.world.small_disk.is_some() {
        kinds.push(postgres::DISK_FULL);
    }
    if campaign.world.clock.is_some() {
        kinds.push(postgres::CLOCK_STEPS);
    }
    kinds
}

/// Those that are made along the way: by the processes' fates, or by the producer.
pub(crate) const ALONG_THE_WAY: [&str; 2] = ["freeze-mid-copy", "aborted-transactions"];
