//! Bytes as base64 text, and back.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// For the places where JSON has to carry bytes.
pub fn text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Appends what a text stands for, padded or not; `None` where it is no base64.
pub(super) fn decode(text: &str, out: &mut Vec<u8>) -> Option<()> {
    LENIENT.decode_vec(text, out).ok()
}
