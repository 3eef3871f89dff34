//! LoGra: dense projections of both factors of a linear layer, the baseline to beat.

use crate::dtype::{Rows, Tokens};
use crate::error::Result;
use crate::gaussian::{Gaussian, GaussianKind};
use crate::linalg::outer_sum;
use crate::parallel::Workers;
use crate::philox::derive;
use crate::spec::{Spec, check_range};

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
        inputs: &Tokens,
        grad_outputs: &Tokens,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let (rank_in, rank_out) = (self.project_in.output_dim(), self.project_out.output_dim());
        let rows = inputs.count();
        let mut small_inputs = vec![0.0; rows * rank_in];
        let mut small_grads = vec![0.0; rows * rank_out];
        self.project_in
            .compress(inputs, &mut small_inputs, workers)?;
        self.project_out
            .compress(grad_outputs, &mut small_grads, workers)?;
        let tokens = inputs.shape()[1];
        let examples = out.chunks_mut(rank_in * rank_out).enumerate().collect();
        workers
            .for_operations(rows.saturating_mul(rank_in * rank_out))
            .for_each(examples, |(example, out)| {
                let tokens = example * tokens..(example + 1) * tokens;
                outer_sum(
                    &small_grads[tokens.start * rank_out..tokens.end * rank_out],
                    &small_inputs[tokens.start * rank_in..tokens.end * rank_in],
                    rank_in,
                    0,
                    out,
                );
                Ok(())
            })
    }
}
