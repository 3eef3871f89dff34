//! GraSS: mask, then SJLT. Only the kept coordinates are read.

use crate::dtype::{Gather, Rows};
use crate::error::{Error, Result};
use crate::mask::Mask;
use crate::parallel::Workers;
use crate::philox::derive;
use crate::sjlt::Sjlt;
use crate::spec::{SjltKind, Spec, check_count};

/// A mask followed by an SJLT of the kept coordinates (arXiv 2505.18976).
#[derive(Debug, Clone)]
pub struct Grass {
    mask: Mask,
    sjlt: Sjlt,
    seed: u64,
    kind: SjltKind,
}

impl Grass {
    /// `mask`, then the SJLT of seed `derive(seed, "sjlt")` to `output_dim`.
    ///
    /// # Errors
    /// [`Error::Spec`] for a zero dimension or a mask of another input.
    pub fn new(
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        mask: Mask,
        kind: SjltKind,
    ) -> Result<Self> {
        check_count("grass", "input_dim", input_dim)?;
        check_count("grass", "output_dim", output_dim)?;
        if mask.input_dim() != input_dim {
            return Err(Error::spec(
                "grass",
                "mask",
                format!("a mask of input_dim={input_dim} coordinates"),
                format!("one of {}", mask.input_dim()),
            ));
        }
        let sjlt = Sjlt::new(mask.output_dim(), output_dim, derive(seed, "sjlt"), 1, kind)?;
        Ok(Self {
            mask,
            sjlt,
            seed,
            kind,
        })
    }

    /// The mask of the first step.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The SJLT of the second step.
    pub fn sjlt(&self) -> &Sjlt {
        &self.sjlt
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::Grass {
            input_dim: self.mask.input_dim(),
            output_dim: self.sjlt.output_dim(),
            seed: self.seed,
            mask_dim: self.mask.output_dim(),
            mask: Box::new(self.mask.spec()),
            kind: self.kind,
        }
    }

    pub(crate) fn compress(
        &self,
        rows: &dyn Gather,
        count: usize,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let kept = Kept {
            rows,
            count,
            indices: self.mask.indices(workers)?,
        };
        self.sjlt.compress(&kept, self.mask.scale(), out, workers)
    }
}

/// Rows seen through a mask.
struct Kept<'a> {
    rows: &'a dyn Gather,
    count: usize,
    indices: &'a [u64],
}

impl Rows for Kept<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn in_place(&self, _row: usize, _start: usize, _len: usize) -> &[f32] {
        &[]
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        let indices = &self.indices[start..start + buffer.len()];
        self.rows.gather(row, indices, buffer);
        buffer
    }
}
