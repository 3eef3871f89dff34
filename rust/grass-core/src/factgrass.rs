//! FactGraSS: masks on both factors of a linear layer, their product summed over tokens, then SJLT.
//!
//! The layer's gradient is never built: time and memory grow with the kept coordinates.

use crate::dtype::{Gather, Rows, Tokens};
use crate::error::{Error, Result};
use crate::linalg::outer_sum;
use crate::mask::Mask;
use crate::parallel::Workers;
use crate::philox::derive;
use crate::sjlt::{Sjlt, SjltKind};
use crate::spec::{Spec, check_range};

/// The factorised GraSS of a linear layer's gradient (arXiv 2505.18976, section 3.4).
#[derive(Debug, Clone)]
pub struct FactGrass {
    mask_in: Mask,
    mask_out: Mask,
    sjlt: Sjlt,
    seed: u64,
    kind: SjltKind,
}

impl FactGrass {
    /// Masks of a layer's inputs and output gradients, and the SJLT of seed `derive(seed, "sjlt")` over their product.
    ///
    /// # Errors
    /// [`Error::Spec`] for a zero dimension or masks of other widths.
    pub fn new(
        in_features: usize,
        out_features: usize,
        output_dim: usize,
        seed: u64,
        (mask_in, mask_out): (Mask, Mask),
        kind: SjltKind,
    ) -> Result<Self> {
        for (argument, mask, width) in [
            ("mask_in", &mask_in, in_features),
            ("mask_out", &mask_out, out_features),
        ] {
            if mask.input_dim() != width {
                return Err(Error::spec(
                    "factgrass",
                    argument,
                    format!("a mask of {width} features"),
                    format!("one of {}", mask.input_dim()),
                ));
            }
        }
        check_range("factgrass", "in_features", &[in_features, out_features])?;
        let product = mask_in.output_dim() * mask_out.output_dim();
        let sjlt = Sjlt::new(product, output_dim, derive(seed, "sjlt"), 1, kind)?;
        Ok(Self {
            mask_in,
            mask_out,
            sjlt,
            seed,
            kind,
        })
    }

    /// Inputs and outputs of the layer.
    pub fn features(&self) -> (usize, usize) {
        (self.mask_in.input_dim(), self.mask_out.input_dim())
    }

    /// The mask of the layer's input.
    pub fn mask_in(&self) -> &Mask {
        &self.mask_in
    }

    /// The mask of the layer's output gradient.
    pub fn mask_out(&self) -> &Mask {
        &self.mask_out
    }

    /// The SJLT over the masked product.
    pub fn sjlt(&self) -> &Sjlt {
        &self.sjlt
    }

    pub(crate) fn spec(&self) -> Result<Spec> {
        let (in_features, out_features) = self.features();
        Ok(Spec::Factgrass {
            in_features,
            out_features,
            output_dim: self.sjlt.output_dim(),
            seed: self.seed,
            mask_in: Box::new(self.mask_in.spec()?),
            mask_out: Box::new(self.mask_out.spec()?),
            kind: self.kind,
        })
    }

    pub(crate) fn compress(
        &self,
        inputs: &Tokens,
        grad_outputs: &Tokens,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let tokens = inputs.shape()[1];
        let product = MaskedProduct {
            inputs: gather_all(&self.mask_in, inputs, workers)?,
            grad_outputs: gather_all(&self.mask_out, grad_outputs, workers)?,
            count: inputs.shape()[0],
            input_row: tokens * self.mask_in.output_dim(),
            grad_output_row: tokens * self.mask_out.output_dim(),
            width: self.mask_in.output_dim(),
        };
        let scale = self.mask_in.scale() * self.mask_out.scale();
        self.sjlt.compress(&product, scale, out, workers)
    }
}

/// The kept features of every token, side by side, unscaled.
fn gather_all(mask: &Mask, tokens: &Tokens, workers: &Workers) -> Result<Vec<f32>> {
    let indices = mask.indices()?;
    let mut kept = vec![0.0; tokens.count() * indices.len()];
    let rows = kept.chunks_mut(indices.len()).enumerate().collect();
    workers
        .for_operations(tokens.count() * indices.len())
        .for_each(rows, |(row, kept)| -> Result<()> {
            tokens.gather(row, indices, kept);
            Ok(())
        })?;
    Ok(kept)
}

/// Rows of products of masked factors, computed a tile at a time as the SJLT asks for them.
struct MaskedProduct {
    inputs: Vec<f32>,
    grad_outputs: Vec<f32>,
    count: usize,
    input_row: usize,
    grad_output_row: usize,
    width: usize,
}

impl Rows for MaskedProduct {
    fn count(&self) -> usize {
        self.count
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        let inputs = &self.inputs[row * self.input_row..(row + 1) * self.input_row];
        let grad_outputs =
            &self.grad_outputs[row * self.grad_output_row..(row + 1) * self.grad_output_row];
        outer_sum(grad_outputs, inputs, self.width, start, buffer);
        buffer
    }
}
