//! LoGra: dense projections of both factors of a linear layer, the baseline to beat.

use crate::dtype::{Factor, Range, Rows};
use crate::error::Result;
use crate::gaussian::Gaussian;
use crate::linalg::add_outer_products;
use crate::parallel::Workers;
use crate::philox::derive;
use crate::spec::{GaussianKind, Spec, check_count, check_range};

/// Projected values held at a time, 16 MiB: long sequences go in blocks of tokens.
const BLOCK_VALUES: usize = 1 << 22;

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
        let (rank_in, rank_out) = (self.project_in.output_dim(), self.project_out.output_dim());
        let (tokens, rows) = (inputs.shape()[1], inputs.count());
        let step = (BLOCK_VALUES / (rank_in + rank_out)).clamp(1, rows.max(1));
        let mut small_inputs = vec![0.0; step * rank_in];
        let mut small_grads = vec![0.0; step * rank_out];
        out.fill(0.0);
        for first in (0..rows).step_by(step) {
            let range = first..rows.min(first + step);
            let small_inputs = &mut small_inputs[..range.len() * rank_in];
            let small_grads = &mut small_grads[..range.len() * rank_out];
            let (inputs, grad_outputs) = (
                Range::new(inputs, range.clone()),
                Range::new(grad_outputs, range.clone()),
            );
            self.project_in.compress(&inputs, small_inputs, workers)?;
            self.project_out
                .compress(&grad_outputs, small_grads, workers)?;
            let examples = out
                .chunks_mut(rank_in * rank_out)
                .enumerate()
                .skip(range.start / tokens)
                .take(range.end.div_ceil(tokens) - range.start / tokens)
                .collect();
            workers
                .for_operations(range.len().saturating_mul(rank_in * rank_out))
                .for_each(examples, |(example, out)| -> Result<()> {
                    let from = range.start.max(example * tokens) - range.start;
                    let to = range.end.min((example + 1) * tokens) - range.start;
                    let inputs = &small_inputs[from * rank_in..to * rank_in];
                    let grads = &small_grads[from * rank_out..to * rank_out];
                    add_outer_products(grads, inputs, rank_in, out);
                    Ok(())
                })?;
        }
        Ok(())
    }
}
