//! LoGra: dense projections of both factors of a linear layer, the baseline to beat.

use std::ops::Range;

use crate::dtype::{self, Factor};
use crate::error::Result;
use crate::gaussian::Gaussian;
use crate::panels::{LEFT, RIGHT, add_product, pack_token, packed_len};
use crate::parallel::Workers;
use crate::philox::derive;
use crate::project::parts;
use crate::simd::Path;
use crate::spec::{GaussianKind, Spec, check_count, check_range};
use crate::workspace::with_f32;

/// Projected values held at a time, 4 MiB: as many rows as that allows share the projections.
const BLOCK_VALUES: usize = 1 << 20;

/// The most projected coordinates of a factor at a time.
const RANKS: usize = 1 << 11;

/// Projected values of tokens in panels at a time, 1 MiB at most.
const PANEL_VALUES: usize = 1 << 18;

/// Tokens in panels at a time: the panels of usual ranks stay in the second-level cache.
const TOKENS: usize = 128;

/// `out[o, i] = sum_t (P_out g_t)[o] (P_in a_t)[i]` with dense Gaussian `P_in`, `P_out`.
#[derive(Debug, Clone)]
pub struct Logra {
    project_in: Gaussian,
    project_out: Gaussian,
    seed: u64,
}

impl Logra {
    /// Projections of seeds `derive(seed, "in")` and `derive(seed, "out")`.
    ///
    /// # Errors
    /// [`crate::Error::Spec`] for a zero dimension.
    pub fn new(
        in_features: usize,
        out_features: usize,
        rank_in: usize,
        rank_out: usize,
        seed: u64,
    ) -> Result<Self> {
        for (argument, value) in [
            ("in_features", in_features),
            ("out_features", out_features),
            ("rank_in", rank_in),
            ("rank_out", rank_out),
        ] {
            check_count("logra", argument, value)?;
        }
        check_range("logra", "in_features", &[in_features, out_features])?;
        check_range("logra", "rank_in", &[rank_in, rank_out])?;
        let normal = GaussianKind::Normal;
        Ok(Self {
            project_in: Gaussian::new(in_features, rank_in, derive(seed, "in"), normal)?,
            project_out: Gaussian::new(out_features, rank_out, derive(seed, "out"), normal)?,
            seed,
        })
    }

    /// Inputs and outputs of the layer.
    pub fn features(&self) -> (usize, usize) {
        (self.project_in.input_dim(), self.project_out.input_dim())
    }

    /// The projection of the layer's input.
    pub fn project_in(&self) -> &Gaussian {
        &self.project_in
    }

    /// The projection of the layer's output gradient.
    pub fn project_out(&self) -> &Gaussian {
        &self.project_out
    }

    /// `rank_out * rank_in`.
    pub fn output_dim(&self) -> usize {
        self.project_in.output_dim() * self.project_out.output_dim()
    }

    pub(crate) fn spec(&self) -> Spec {
        let (in_features, out_features) = self.features();
        Spec::Logra {
            in_features,
            out_features,
            rank_in: self.project_in.output_dim(),
            rank_out: self.project_out.output_dim(),
            seed: self.seed,
        }
    }

    pub(crate) fn compress(
        &self,
        inputs: &Factor,
        grad_outputs: &Factor,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        out.fill(0.0);
        for columns in parts(0..self.project_in.output_dim(), RANKS) {
            for rows in parts(0..self.project_out.output_dim(), RANKS) {
                self.add_part(inputs, grad_outputs, (rows, columns.clone()), out, workers)?;
            }
        }
        Ok(())
    }

    /// Adds some rows and columns of the products to those of `out`.
    fn add_part(
        &self,
        inputs: &Factor,
        grad_outputs: &Factor,
        (rows, columns): (Range<usize>, Range<usize>),
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let (n, tokens, k) = (inputs.shape()[0], inputs.shape()[1], self.output_dim());
        let width = rows.len() + columns.len();
        // Tokens that are summed at once: they must depend on the structure alone, and so must the cut into blocks.
        let unit = (PANEL_VALUES / width).clamp(1, TOKENS);
        let most = BLOCK_VALUES / width / unit * unit;
        let step = most.min(tokens).max(1);
        let examples = (most / step).clamp(1, n.max(1));
        for examples in parts(0..n, examples) {
            for part in parts(0..tokens, step) {
                // Whole examples, or some tokens of one.
                let start = examples.start * tokens + part.start;
                let block = start..start + examples.len() * part.len();
                with_f32(block.len() * width, |values| {
                    let (grads, values) = values.split_at_mut(block.len() * rows.len());
                    let range = |rows| dtype::Range::new(rows, block.clone());
                    self.project_out.compress_to(
                        rows.clone(),
                        &range(grad_outputs),
                        grads,
                        workers,
                    )?;
                    self.project_in.compress_to(
                        columns.clone(),
                        &range(inputs),
                        values,
                        workers,
                    )?;
                    let factors = [(&*grads, rows.clone()), (&*values, columns.clone())];
                    let out = &mut out[examples.start * k..examples.end * k];
                    self.add_products(factors, part.len(), unit, out, workers)
                })?;
            }
        }
        Ok(())
    }

    /// Adds the products of projected factors, `tokens` tokens an example, beside each the part of its rank that it holds.
    fn add_products(
        &self,
        [(grads, rows), (inputs, columns)]: [(&[f32], Range<usize>); 2],
        tokens: usize,
        unit: usize,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let rank_in = self.project_in.output_dim();
        let first = rows.start * rank_in + columns.start;
        let (rows, columns) = (rows.len(), columns.len());
        let lengths = (
            packed_len::<LEFT>(rows, unit),
            packed_len::<RIGHT>(columns, unit),
        );
        let operations = grads.len().saturating_mul(columns);
        let workers = workers.for_operations(operations);
        workers.for_each_chunk(out, self.output_dim(), |example, out| {
            let (path, out) = (Path::current(), &mut out[first..]);
            with_f32(lengths.0 + lengths.1, |panels| {
                let (left, right) = panels.split_at_mut(lengths.0);
                for part in parts(example * tokens..(example + 1) * tokens, unit) {
                    workers.check()?;
                    let tokens = part.len();
                    let grads = &grads[part.start * rows..][..tokens * rows];
                    let inputs = &inputs[part.start * columns..][..tokens * columns];
                    let left = &mut left[..packed_len::<LEFT>(rows, tokens)];
                    let right = &mut right[..packed_len::<RIGHT>(columns, tokens)];
                    for (token, values) in grads.chunks_exact(rows).enumerate() {
                        pack_token::<LEFT>(values, token, tokens, left);
                    }
                    for (token, values) in inputs.chunks_exact(columns).enumerate() {
                        pack_token::<RIGHT>(values, token, tokens, right);
                    }
                    add_product(path, (left, right), tokens, out, rank_in, (rows, columns));
                }
                Ok(())
            })
        })
    }
}
