//! CRC-32 (the polynomial of zlib and PNG), whole and joined.

/// CRC-32 of `bytes`; equals Python's `zlib.crc32`.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 of two runs of bytes one after the other, from their own CRC-32s and the second's length.
pub(crate) fn joined(first: u32, second: u32, second_bytes: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(first);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(
        second,
        second_bytes,
    ));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_the_polynomial() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    proptest! {
        #[test]
        fn joined_equals_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(joined(crc32(first), crc32(second), second.len() as u64), crc32(&bytes));
        }
    }
}
