//! Blocks one by one, for any machine.

use super::philox4x32_10;

/// Fills `words` with the double words of a stream's blocks from number `first` on; the last one may be cut.
pub(super) fn fill_blocks(key: [u32; 2], stream: u32, first: u64, words: &mut [u64]) {
    let mut m = first;
    for words in words.chunks_mut(2) {
        let block = philox4x32_10(key, [m as u32, (m >> 32) as u32, stream, 0]);
        for (word, pair) in words.iter_mut().zip(block.chunks_exact(2)) {
            *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        }
        m = m.wrapping_add(1);
    }
}
