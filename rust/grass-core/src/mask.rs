//! Masks: k' of p coordinates, sorted.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

use crate::dtype::Gather;
use crate::error::{Error, Result};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream};
use crate::project::multiply;
use crate::spec::{Spec, check_count};

/// Output coordinates gathered between two looks at the cancel flag.
const TILE: usize = 1 << 14;

/// Operations that take as long as gathering one value.
const GATHER: usize = 16;

/// A selection of coordinates.
#[derive(Debug, Clone)]
pub struct Mask {
    input_dim: usize,
    output_dim: usize,
    choice: Choice,
    indices: OnceLock<Vec<u64>>,
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Explicit,
    Random { seed: u64, block: usize },
}

impl Mask {
    /// The mask that keeps `indices` of `input_dim` coordinates, unscaled.
    ///
    /// # Errors
    /// [`Error::Spec`] unless the indices are strictly increasing and below `input_dim`, and there is at least one.
    pub fn explicit(indices: Vec<u64>, input_dim: usize) -> Result<Self> {
        check_count("mask", "input_dim", input_dim)?;
        check_count("mask", "number of indices", indices.len())?;
        if let Some(pair) = indices.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::spec(
                "mask",
                "indices",
                "strictly increasing (sort them and drop repeated ones)",
                format!("{} before {}", pair[0], pair[1]),
            ));
        }
        if let Some(&last) = indices.last()
            && last >= input_dim as u64
        {
            return Err(Error::spec(
                "mask",
                "indices",
                format!("below input_dim={input_dim}"),
                last,
            ));
        }
        Ok(Self {
            input_dim,
            output_dim: indices.len(),
            choice: Choice::Explicit,
            indices: OnceLock::from(indices),
        })
    }

    /// A uniform choice of `output_dim` of `input_dim` coordinates, in whole runs of `block`. The choice is made at
    /// first use, in time and memory that grow with `output_dim` alone.
    ///
    /// # Errors
    /// [`Error::Spec`] for a zero dimension, `output_dim > input_dim`, or a `block` that does not divide both.
    pub fn random(input_dim: usize, output_dim: usize, seed: u64, block: usize) -> Result<Self> {
        const KIND: &str = "random_mask";
        check_count(KIND, "input_dim", input_dim)?;
        check_count(KIND, "output_dim", output_dim)?;
        check_count(KIND, "block", block)?;
        if output_dim > input_dim {
            return Err(Error::spec(
                KIND,
                "output_dim",
                format!("at most input_dim={input_dim}"),
                output_dim,
            ));
        }
        if !input_dim.is_multiple_of(block) || !output_dim.is_multiple_of(block) {
            return Err(Error::spec(
                KIND,
                "block",
                format!("a divisor of input_dim={input_dim} and output_dim={output_dim}"),
                block,
            ));
        }
        Ok(Self {
            input_dim,
            output_dim,
            choice: Choice::Random { seed, block },
            indices: OnceLock::new(),
        })
    }

    /// Coordinates of the input.
    pub fn input_dim(&self) -> usize {
        self.input_dim
    }

    /// Coordinates kept.
    pub fn output_dim(&self) -> usize {
        self.output_dim
    }

    /// The factor that makes a random mask unbiased, `sqrt(p / k')`; explicit masks do not scale.
    pub fn scale(&self) -> f64 {
        match self.choice {
            Choice::Explicit => 1.0,
            Choice::Random { .. } => (self.input_dim as f64 / self.output_dim as f64).sqrt(),
        }
    }

    /// The coordinates kept, sorted.
    ///
    /// # Errors
    /// [`Error::Spec`] where there is not enough memory to hold them; [`Error::Interrupted`].
    pub fn indices(&self, workers: &Workers) -> Result<&[u64]> {
        if let Some(indices) = self.indices.get() {
            return Ok(indices);
        }
        let Choice::Random { seed, block } = self.choice else {
            unreachable!("an explicit mask has its indices from the start")
        };
        let chosen = sample(self.input_dim, self.output_dim, seed, block, workers)?;
        Ok(self.indices.get_or_init(|| chosen))
    }

    /// Arithmetic operations of drawing the indices, where that is still to be done.
    pub fn drawing_operations(&self) -> usize {
        match self.indices.get() {
            Some(_) => 0,
            None => self.output_dim.saturating_mul(64),
        }
    }

    pub(crate) fn spec(&self) -> Spec {
        match self.choice {
            Choice::Explicit => Spec::Mask {
                indices: self.indices.get().cloned().unwrap_or_default(),
                input_dim: self.input_dim,
            },
            Choice::Random { seed, block } => Spec::RandomMask {
                input_dim: self.input_dim,
                output_dim: self.output_dim,
                seed,
                block,
            },
        }
    }

    pub(crate) fn compress(
        &self,
        rows: &dyn Gather,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let indices = self.indices(workers)?;
        let scale = self.scale() as f32;
        let kept = self.output_dim;
        let workers = workers.for_operations(out.len().saturating_mul(GATHER));
        // By the tile, not by the row: rows may be few and long, or many and short.
        workers.for_each_chunk(out, TILE, |tile, mut out| {
            let mut start = tile * TILE;
            while !out.is_empty() {
                let (row, first) = (start / kept, start % kept);
                let (part, rest) = out.split_at_mut(out.len().min(kept - first));
                rows.gather(row, &indices[first..first + part.len()], part);
                multiply(part, scale);
                start += part.len();
                out = rest;
            }
            Ok(())
        })
    }
}

/// Floyd's sampling of `kept / block` of `total / block` runs with 64-bit draws, expanded to coordinates.
fn sample(
    total: usize,
    kept: usize,
    seed: u64,
    block: usize,
    workers: &Workers,
) -> Result<Vec<u64>> {
    let out_of_memory =
        |_| Error::spec("random_mask", "output_dim", "small enough for memory", kept);
    let (total, runs) = ((total / block) as u64, (kept / block) as u64);
    let mut indices = Vec::new();
    indices.try_reserve_exact(kept).map_err(out_of_memory)?;
    if runs == total {
        indices.extend(0..kept as u64);
        return Ok(indices);
    }
    let philox = Philox::new(seed);
    let mut taken = HashSet::with_hasher(BuildHasherDefault::<IndexHasher>::default());
    taken.try_reserve(runs as usize).map_err(out_of_memory)?;
    let mut chosen = Vec::new();
    chosen
        .try_reserve_exact(runs as usize)
        .map_err(out_of_memory)?;
    for step in 0..runs {
        if step % TILE as u64 == 0 {
            workers.check()?;
        }
        let last = total - runs + step;
        let drawn = philox.draw_wide(Stream::Mask, last + 1, step);
        let run = if taken.insert(drawn) {
            drawn
        } else {
            taken.insert(last);
            last
        };
        chosen.push(run);
    }
    chosen.sort_unstable();
    let block = block as u64;
    indices.extend(
        chosen
            .into_iter()
            .flat_map(|run| run * block..(run + 1) * block),
    );
    Ok(indices)
}

/// Hash of an index by one multiplication: indices are drawn here, no adversary chooses them.
#[derive(Default)]
struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, index: u64) {
        let product = u128::from(self.0 ^ index) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
