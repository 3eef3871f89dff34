//! FactGraSS: masks on both factors of a linear layer, their product summed over tokens, then SJLT.
//!
//! The layer's gradient is never built: time and memory grow with the kept coordinates.

use crate::dtype::{Factor, Rows};
use crate::error::{Error, Result};
use crate::mask::Mask;
use crate::panels::{LEFT, RIGHT, add_product, packed_len};
use crate::parallel::Workers;
use crate::philox::derive;
use crate::project::{Projection, multiply};
use crate::simd::Path;
use crate::sjlt::Sjlt;
use crate::spec::{SjltKind, Spec, check_count, check_range};
use crate::workspace::with_f32;

/// Values of masked products held at a time by a thread, 1 MiB: they stay in the second-level cache.
const PRODUCT_VALUES: usize = 1 << 18;

/// Kept values of tokens in panels at a time, 1 MiB at most.
const PANEL_VALUES: usize = 1 << 18;

/// Tokens in panels at a time: the panels of usual masks stay in the second-level cache.
const TOKENS: usize = 128;

/// The most examples that share what the SJLT generates.
const EXAMPLES: usize = 4;

/// The factorised GraSS of a linear layer's gradient (arXiv 2505.18976).
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
        check_count("factgrass", "in_features", in_features)?;
        check_count("factgrass", "out_features", out_features)?;
        check_count("factgrass", "output_dim", output_dim)?;
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

    pub(crate) fn spec(&self) -> Spec {
        let (in_features, out_features) = self.features();
        Spec::Factgrass {
            in_features,
            out_features,
            output_dim: self.sjlt.output_dim(),
            seed: self.seed,
            mask_in: Box::new(self.mask_in.spec()),
            mask_out: Box::new(self.mask_out.spec()),
            kind: self.kind,
        }
    }

    pub(crate) fn compress(
        &self,
        inputs: &Factor,
        grad_outputs: &Factor,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let kept_in = self.mask_in.indices(workers)?;
        let kept_out = self.mask_out.indices(workers)?;
        let scale = (self.mask_in.scale() * self.mask_out.scale() * self.sjlt.scale()) as f32;
        let (n, tokens) = (inputs.shape()[0], inputs.shape()[1]);
        let operations = self.operations(tokens).saturating_mul(n);
        let workers = workers.for_operations(operations);
        let width = kept_in.len().min(PRODUCT_VALUES);
        // Whole rows of the product, or a part of one: its coordinates are in one piece.
        let height = (PRODUCT_VALUES / kept_in.len()).clamp(1, kept_out.len());
        let group = (PRODUCT_VALUES / (height * width))
            .clamp(1, EXAMPLES)
            .min(n.div_ceil(workers.threads()).max(1));
        let step = (PANEL_VALUES / (width + height)).clamp(1, TOKENS);
        let (right_len, left_len) = (
            packed_len::<RIGHT>(width, step),
            packed_len::<LEFT>(height, step),
        );
        let k = self.sjlt.output_dim();
        let path = Path::current();
        workers.for_each_chunk(out, group * k, |index, out| {
            let len = right_len + left_len + group * height * width;
            out.fill(0.0);
            with_f32(len, |buffer| -> Result<()> {
                let (right, buffer) = buffer.split_at_mut(right_len);
                let (left, products) = buffer.split_at_mut(left_len);
                for (first, column) in (0..kept_out.len())
                    .step_by(height)
                    .flat_map(|first| (0..kept_in.len()).step_by(width).map(move |c| (first, c)))
                {
                    let kept_out = &kept_out[first..kept_out.len().min(first + height)];
                    let kept_in = &kept_in[column..kept_in.len().min(column + width)];
                    let shape = (kept_out.len(), kept_in.len());
                    let products = &mut products[..out.len() / k * shape.0 * shape.1];
                    products.fill(0.0);
                    for (example, product) in
                        products.chunks_exact_mut(shape.0 * shape.1).enumerate()
                    {
                        let first = (index * group + example) * tokens;
                        for start in (first..first + tokens).step_by(step) {
                            workers.check()?;
                            let rows = start..(first + tokens).min(start + step);
                            let left = &mut left[..packed_len::<LEFT>(shape.0, rows.len())];
                            let right = &mut right[..packed_len::<RIGHT>(shape.1, rows.len())];
                            grad_outputs.gather_panels::<LEFT>(rows.clone(), kept_out, left);
                            inputs.gather_panels::<RIGHT>(rows.clone(), kept_in, right);
                            add_product(path, (left, right), rows.len(), product, shape.1, shape);
                        }
                    }
                    let product = Product {
                        values: products,
                        start: first * self.mask_in.output_dim() + column,
                        len: shape.0 * shape.1,
                    };
                    let (start, end) = (product.start, product.start + product.len);
                    self.sjlt
                        .accumulate(&product, 0, start, end, out, &workers)?;
                }
                Ok(())
            })?;
            multiply(out, scale);
            Ok(())
        })
    }

    /// Arithmetic operations an example of `tokens` tokens.
    pub(crate) fn operations(&self, tokens: usize) -> usize {
        self.sjlt
            .input_dim()
            .saturating_mul(tokens.saturating_add(4))
    }
}

/// Coordinates `start..start + len` of the masked products of some examples, one after the other.
struct Product<'a> {
    values: &'a [f32],
    start: usize,
    len: usize,
}

impl Rows for Product<'_> {
    fn count(&self) -> usize {
        self.values.len() / self.len
    }

    fn in_place(&self, row: usize, start: usize, len: usize) -> &[f32] {
        let first = row * self.len + start - self.start;
        &self.values[first..first + len]
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        self.in_place(row, start, buffer.len())
    }
}
