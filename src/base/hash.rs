//! FNV-1a. Its results stand in the ledger, so they must be the same in every build for ever; a collision would only hide a
//! topic that was created again, so 64 bits of a simple function are enough.

/// A hash in the making.
#[derive(Clone, Copy, Debug)]
pub struct StableHash(u64);

impl Default for StableHash {
    fn default() -> StableHash {
        StableHash(0xcbf2_9ce4_8422_2325)
    }
}

impl StableHash {
    pub fn eat(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// As a database has it: its integers have a sign.
    pub fn finish(self) -> i64 {
        self.0 as i64
    }
}

/// Of a whole text.
pub fn of(text: &str) -> i64 {
    let mut hash = StableHash::default();
    hash.eat(text.as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // From the test vectors of its authors.
        assert_eq!(of("") as u64, 0xcbf2_9ce4_8422_2325);
        assert_eq!(of("a") as u64, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(of("foobar") as u64, 0x8594_4171_f739_67e8);
    }
}
