//! Numbers drawn from numbers: everything random in a message is a hash of its identity, so that it can be drawn again when
//! the row is read back.

/// Spreads the bits of a number over all 64: the finalizer of splitmix64.
pub fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

/// A hash as a number from 0 up to, and never, 1.
pub fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}
