//! The CRC-32 of bytes whose products are taken, beside them.
//!
//! A CRC-32 is the remainder of the bytes as a polynomial over GF(2). It does not change when the first bytes are put in
//! place of later ones, times the remainder of x to the number of bits between; so a stream is folded, 256 bytes onto
//! the next, until 256 are left: V. Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
//! Instruction, Intel, 2009. That takes more multiplications than one query does, but of another kind: beside the
//! products they cost little.

#[cfg(target_arch = "x86_64")]
use crate::simd::Instructions;
use crate::simd::Path;

/// Bytes that are folded onto the next ones at once.
pub(super) const FOLDED: usize = 256;

/// The CRC-32 (of zlib) of some bytes, which is taken while products of them are taken.
#[derive(Debug, Clone)]
pub struct Checksum<'a> {
    /// Bytes that stand for all before `left`.
    pub(super) folded: [u8; FOLDED],
    pub(super) left: &'a [[u8; FOLDED]],
    rest: &'a [u8],
}

impl<'a> Checksum<'a> {
    /// Of `bytes`, if there is a way to take it beside products on `path`, and if they are enough for it.
    pub fn beside_products(path: Path, bytes: &'a [u8]) -> Option<Self> {
        let (blocks, rest) = bytes.as_chunks();
        let (&first, left) = blocks.split_first().filter(|_| folds(path))?;
        let mut folded = first;
        // A CRC-32 begins with all bits set, which is as if the first were the other way round.
        for byte in &mut folded[..4] {
            *byte = !*byte;
        }
        Some(Self { folded, left, rest })
    }

    /// The CRC-32 of all the bytes.
    pub fn finish(self) -> u32 {
        // Begins with no bit set.
        let mut hasher = crc32fast::Hasher::new_with_initial(!0);
        for part in [&self.folded, self.left.as_flattened(), self.rest] {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

#[cfg(target_arch = "x86_64")]
fn folds(path: Path) -> bool {
    path.instructions == Instructions::Avx512 && is_x86_feature_detected!("vpclmulqdq")
}

#[cfg(not(target_arch = "x86_64"))]
fn folds(_path: Path) -> bool {
    false
}
