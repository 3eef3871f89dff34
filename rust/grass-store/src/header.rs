//! The first 4096 bytes of a `.rows` file.
//!
//! ```text
//!    0  magic "GRASSROW"
//!    8  format u32 | 12 dtype code u32 | 16 row bytes u64 | 24 shard number u32
//!   28  SHA-256 of the store's identity: its columns, dtype and fingerprints
//!   60  zeros
//! 4092  CRC-32 of the bytes before
//! ```

use crate::checksum::crc32;
use crate::dtype::Dtype;

/// The header fills one page, so that rows begin on a page.
pub(crate) const HEADER_BYTES: usize = 4096;

/// The format of this module and of every other file of the store.
pub(crate) const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"GRASSROW";
const CHECKED: usize = HEADER_BYTES - 4;

/// What a `.rows` file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: Dtype,
    pub(crate) row_bytes: u64,
    pub(crate) shard: u32,
    pub(crate) identity: [u8; 32],
}

fn word(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether these bytes are a header as some store has it, this one or another.
pub(crate) fn is_whole(bytes: &[u8; HEADER_BYTES]) -> bool {
    bytes[..8] == MAGIC && crc32(&bytes[..CHECKED]) == word(bytes, CHECKED)
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.dtype.code().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.row_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.shard.to_le_bytes());
        bytes[28..60].copy_from_slice(&self.identity);
        let checksum = crc32(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Says what is wrong with a header that should be this one.
    ///
    /// # Errors
    /// What was expected and what was found, in words.
    pub(crate) fn check(self, bytes: &[u8; HEADER_BYTES]) -> Result<(), String> {
        let expected = self.to_bytes();
        if *bytes == expected {
            return Ok(());
        }
        if bytes[..8] != MAGIC {
            return Err("expected the magic bytes GRASSROW at the start".to_owned());
        }
        if !is_whole(bytes) {
            return Err("the checksum differs".to_owned());
        }
        let fields = [
            ("format", 8, 4),
            ("dtype code", 12, 4),
            ("row bytes", 16, 8),
            ("shard number", 24, 4),
        ];
        let number = |bytes: &[u8; HEADER_BYTES], at: usize, length: usize| match length {
            4 => u64::from(word(bytes, at)),
            _ => u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32,
        };
        for (name, at, length) in fields {
            let (want, got) = (number(&expected, at, length), number(bytes, at, length));
            if want != got {
                return Err(format!("expected {name} {want}, got {got}"));
            }
        }
        Err(match bytes[28..60] == self.identity {
            true => "expected zeros after the fields",
            false => "the shard is of a store with other columns, dtype or fingerprints",
        }
        .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        dtype: Dtype::Int8,
        row_bytes: 0x0102_0304_0506,
        shard: 9,
        identity: [7; 32],
    };

    #[test]
    fn fields_are_little_endian_at_fixed_places() {
        let bytes = HEADER.to_bytes();
        assert_eq!(&bytes[..8], b"GRASSROW");
        assert_eq!(bytes[8..12], [1, 0, 0, 0]);
        assert_eq!(bytes[12..16], [4, 0, 0, 0]);
        assert_eq!(bytes[16..24], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(bytes[24..28], [9, 0, 0, 0]);
        assert!(bytes[28..60].iter().all(|&byte| byte == 7));
        assert!(bytes[60..4092].iter().all(|&byte| byte == 0));
        assert_eq!(HEADER.check(&bytes), Ok(()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = HEADER.to_bytes();
        for place in (0..HEADER_BYTES).step_by(7).chain(0..40).chain(4080..4096) {
            for bit in 0..8 {
                let mut bytes = good;
                bytes[place] ^= 1 << bit;
                assert!(HEADER.check(&bytes).is_err(), "bit {bit} of byte {place}");
            }
        }
    }

    #[test]
    fn a_valid_header_of_another_shard_is_named() {
        let other = Header { shard: 2, ..HEADER }.to_bytes();
        assert_eq!(
            HEADER.check(&other),
            Err("expected shard number 9, got 2".to_owned())
        );
    }
}
