//! A compressor of any type: a seeded linear map `R^p -> R^k` with a spec and a fingerprint.

use crate::dtype::{Factor, Matrix};
use crate::error::{Error, Result};
use crate::factgrass::FactGrass;
use crate::gaussian::Gaussian;
use crate::grass::Grass;
use crate::logra::Logra;
use crate::mask::Mask;
use crate::parallel::Workers;
use crate::project::Projection;
use crate::sjlt::Sjlt;
use crate::spec::Spec;
use crate::tile::TileSketch;

/// Coordinates between two looks at the cancel flag while a dense matrix is written.
const CHECKED: usize = 1024;

/// Any compressor.
#[derive(Debug, Clone)]
pub struct Compressor {
    map: Map,
    spec: Spec,
}

#[derive(Debug, Clone)]
enum Map {
    Mask(Mask),
    Sjlt(Sjlt),
    Gaussian(Gaussian),
    Grass(Grass),
    Logra(Logra),
    FactGrass(FactGrass),
    Tile(TileSketch),
}

impl Compressor {
    /// Builds the compressor of `spec`.
    ///
    /// # Errors
    /// [`Error::Spec`] for arguments that no compressor has.
    pub fn from_spec(spec: Spec) -> Result<Self> {
        let map = match spec {
            Spec::Mask { .. } | Spec::RandomMask { .. } => Map::Mask(build_mask(spec)?),
            Spec::Sjlt {
                input_dim,
                output_dim,
                seed,
                nnz,
                kind,
            } => Map::Sjlt(Sjlt::new(input_dim, output_dim, seed, nnz, kind)?),
            Spec::Gaussian {
                input_dim,
                output_dim,
                seed,
                kind,
            } => Map::Gaussian(Gaussian::new(input_dim, output_dim, seed, kind)?),
            Spec::Grass {
                input_dim,
                output_dim,
                seed,
                mask_dim,
                mask,
                kind,
            } => {
                let mask = build_mask(*mask)?;
                if mask.output_dim() != mask_dim {
                    return Err(Error::spec(
                        "grass",
                        "mask_dim",
                        format!(
                            "the number of coordinates that mask keeps, {}",
                            mask.output_dim()
                        ),
                        mask_dim,
                    ));
                }
                Map::Grass(Grass::new(input_dim, output_dim, seed, mask, kind)?)
            }
            Spec::Logra {
                in_features,
                out_features,
                rank_in,
                rank_out,
                seed,
            } => Map::Logra(Logra::new(
                in_features,
                out_features,
                rank_in,
                rank_out,
                seed,
            )?),
            Spec::Factgrass {
                in_features,
                out_features,
                output_dim,
                seed,
                mask_in,
                mask_out,
                kind,
            } => Map::FactGrass(FactGrass::new(
                in_features,
                out_features,
                output_dim,
                seed,
                (build_mask(*mask_in)?, build_mask(*mask_out)?),
                kind,
            )?),
            Spec::Tile {
                in_features,
                out_features,
                output_dim,
                seed,
            } => Map::Tile(TileSketch::new(
                in_features,
                out_features,
                output_dim,
                seed,
            )?),
        };
        let spec = match &map {
            Map::Mask(mask) => mask.spec(),
            Map::Sjlt(sjlt) => sjlt.spec(),
            Map::Gaussian(gaussian) => gaussian.spec(),
            Map::Grass(grass) => grass.spec(),
            Map::Logra(logra) => logra.spec(),
            Map::FactGrass(factgrass) => factgrass.spec(),
            Map::Tile(tile) => tile.spec(),
        };
        Ok(Self { map, spec })
    }

    /// What determines this compressor.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Coordinates of the input, p.
    pub fn input_dim(&self) -> usize {
        match &self.map {
            Map::Mask(mask) => mask.input_dim(),
            Map::Sjlt(sjlt) => sjlt.input_dim(),
            Map::Gaussian(gaussian) => gaussian.input_dim(),
            Map::Grass(grass) => grass.mask().input_dim(),
            Map::Logra(_) | Map::FactGrass(_) | Map::Tile(_) => self
                .features()
                .map_or(0, |(inputs, outputs)| inputs * outputs),
        }
    }

    /// Coordinates of the output, k.
    pub fn output_dim(&self) -> usize {
        match &self.map {
            Map::Mask(mask) => mask.output_dim(),
            Map::Sjlt(sjlt) => sjlt.output_dim(),
            Map::Gaussian(gaussian) => gaussian.output_dim(),
            Map::Grass(grass) => grass.sjlt().output_dim(),
            Map::Logra(logra) => logra.output_dim(),
            Map::FactGrass(factgrass) => factgrass.sjlt().output_dim(),
            Map::Tile(tile) => tile.output_dim(),
        }
    }

    /// Inputs and outputs of the linear layer that a factorised compressor takes; `None` for the others.
    pub fn features(&self) -> Option<(usize, usize)> {
        match &self.map {
            Map::Logra(logra) => Some(logra.features()),
            Map::FactGrass(factgrass) => Some(factgrass.features()),
            Map::Tile(tile) => Some(tile.features()),
            _ => None,
        }
    }

    /// The mask of a mask compressor, `None` for the others.
    pub fn mask(&self) -> Option<&Mask> {
        match &self.map {
            Map::Mask(mask) => Some(mask),
            _ => None,
        }
    }

    /// Arithmetic operations of a call on `examples` of `tokens` tokens each (one for whole gradients), roughly.
    pub fn operations(&self, examples: usize, tokens: usize) -> usize {
        let each = match &self.map {
            Map::Mask(mask) => mask.output_dim(),
            Map::Sjlt(sjlt) => sjlt.operations(),
            Map::Gaussian(gaussian) => gaussian.operations(),
            Map::Grass(grass) => grass.sjlt().operations(),
            Map::Logra(logra) => logra
                .project_in()
                .operations()
                .saturating_add(logra.project_out().operations())
                .saturating_mul(tokens),
            Map::FactGrass(factgrass) => factgrass.operations(tokens),
            Map::Tile(tile) => tile.operations(tokens),
        };
        let once = match &self.map {
            Map::Mask(mask) => mask.drawing_operations(),
            Map::Grass(grass) => grass.mask().drawing_operations(),
            Map::FactGrass(factgrass) => factgrass
                .mask_in()
                .drawing_operations()
                .saturating_add(factgrass.mask_out().drawing_operations()),
            _ => 0,
        };
        each.saturating_mul(examples).saturating_add(once)
    }

    /// Compresses rows `(n, p)` to `out (n, k)`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows or an output of another shape, or a factorised compressor; [`Error::Interrupted`].
    pub fn compress(&self, rows: &Matrix, out: &mut [f32], workers: &Workers) -> Result<()> {
        let (count, p) = (rows.shape()[0], self.input_dim());
        if rows.shape()[1] != p {
            return Err(self.shape_error(
                format!("(n, {p}) or ({p},)"),
                format!("{:?}", rows.shape()),
                format!("the last axis must have input_dim={p} coordinates"),
            ));
        }
        self.check_output(count, out)?;
        match &self.map {
            Map::Mask(mask) => mask.compress(rows, out, workers),
            Map::Sjlt(sjlt) => sjlt.compress(rows, 1.0, out, workers),
            Map::Gaussian(gaussian) => gaussian.compress(rows, out, workers),
            Map::Grass(grass) => grass.compress(rows, count, out, workers),
            Map::Logra(_) | Map::FactGrass(_) | Map::Tile(_) => Err(self.shape_error(
                "two factors, inputs and grad_outputs".into(),
                "one array of gradients".into(),
                "call it with both factors of the layer".into(),
            )),
        }
    }

    /// Compresses the factors `(n, t, d_in)` and `(n, t, d_out)` of a linear layer's gradients to `out (n, k)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for factors or an output of other shapes, or a compressor of whole gradients;
    /// [`Error::Interrupted`].
    pub fn compress_factors(
        &self,
        inputs: &Factor,
        grad_outputs: &Factor,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let (left, right) = (inputs.shape(), grad_outputs.shape());
        let Some((d_in, d_out)) = self.features() else {
            return Err(self.shape_error(
                "one array of gradients".into(),
                "two factors".into(),
                "only factorised compressors take both factors of a layer".into(),
            ));
        };
        if left[..2] != right[..2] || left[2] != d_in || right[2] != d_out {
            return Err(self.shape_error(
                format!("inputs (n, t, {d_in}) and grad_outputs (n, t, {d_out})"),
                format!("{left:?} and {right:?}"),
                "the layer's inputs (with the bias's column of ones) and output gradients must agree"
                    .into(),
            ));
        }
        self.check_output(left[0], out)?;
        match &self.map {
            Map::Logra(logra) => logra.compress(inputs, grad_outputs, out, workers),
            Map::FactGrass(factgrass) => factgrass.compress(inputs, grad_outputs, out, workers),
            Map::Tile(tile) => tile.compress(inputs, grad_outputs, out, workers),
            _ => unreachable!("only factorised compressors have features"),
        }
    }

    /// Writes the dense matrix `(k, p)`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] for an output of another size; [`Error::Interrupted`].
    pub fn write_dense(&self, out: &mut [f32], workers: &Workers) -> Result<()> {
        let p = self.input_dim();
        self.check_output(p, out)?;
        out.fill(0.0);
        let mut set = |row: usize, coordinate: usize, value: f64| {
            out[row * p + coordinate] = value as f32;
        };
        match &self.map {
            Map::Mask(mask) => {
                for (row, &coordinate) in mask.indices(workers)?.iter().enumerate() {
                    set(row, coordinate as usize, mask.scale());
                }
            }
            Map::Sjlt(sjlt) => write_sjlt(sjlt, sjlt.scale(), |i| i, &mut set, workers)?,
            Map::Grass(grass) => {
                let (mask, sjlt) = (grass.mask(), grass.sjlt());
                let indices = mask.indices(workers)?;
                let coordinate = |i: usize| indices[i] as usize;
                write_sjlt(
                    sjlt,
                    mask.scale() * sjlt.scale(),
                    coordinate,
                    &mut set,
                    workers,
                )?;
            }
            Map::FactGrass(factgrass) => {
                let (mask_in, mask_out) = (factgrass.mask_in(), factgrass.mask_out());
                let (inputs, outputs) = (mask_in.indices(workers)?, mask_out.indices(workers)?);
                let coordinate = |i: usize| {
                    let (o, i) = (i / inputs.len(), i % inputs.len());
                    outputs[o] as usize * mask_in.input_dim() + inputs[i] as usize
                };
                let sjlt = factgrass.sjlt();
                let scale = mask_in.scale() * mask_out.scale() * sjlt.scale();
                write_sjlt(sjlt, scale, coordinate, &mut set, workers)?;
            }
            Map::Tile(tile) => {
                let (d_in, _) = tile.features();
                for coordinate in 0..p {
                    if coordinate % CHECKED == 0 {
                        workers.check()?;
                    }
                    let (row, sign) = tile.entry(coordinate / d_in, coordinate % d_in);
                    set(row, coordinate, sign);
                }
            }
            Map::Gaussian(gaussian) => {
                let mut entries = vec![0.0; gaussian.output_dim()];
                for coordinate in 0..p {
                    workers.check()?;
                    gaussian.fill_entries(coordinate, &mut entries);
                    for (row, &entry) in entries.iter().enumerate() {
                        set(row, coordinate, f64::from(entry) * gaussian.scale());
                    }
                }
            }
            Map::Logra(logra) => {
                let (left, right) = (logra.project_out(), logra.project_in());
                let scale = left.scale() * right.scale();
                let mut left_entries = vec![0.0; left.output_dim()];
                let mut right_entries = vec![0.0; right.output_dim()];
                for coordinate in 0..p {
                    workers.check()?;
                    let (o, i) = (
                        coordinate / right.input_dim(),
                        coordinate % right.input_dim(),
                    );
                    left.fill_entries(o, &mut left_entries);
                    right.fill_entries(i, &mut right_entries);
                    for (l, &from_left) in left_entries.iter().enumerate() {
                        for (r, &from_right) in right_entries.iter().enumerate() {
                            let entry = f64::from(from_left) * f64::from(from_right);
                            set(l * right.output_dim() + r, coordinate, entry * scale);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn check_output(&self, rows: usize, out: &[f32]) -> Result<()> {
        let k = self.output_dim();
        if rows.checked_mul(k) != Some(out.len()) {
            return Err(self.shape_error(
                format!("an output of {rows} x {k} values"),
                out.len().to_string(),
                "let the call allocate it, or pass one of this shape".into(),
            ));
        }
        Ok(())
    }

    fn shape_error(&self, expected: String, got: String, hint: String) -> Error {
        let op = match &self.map {
            Map::Mask(_) => "mask",
            Map::Sjlt(_) => "SJLT",
            Map::Gaussian(_) => "Gaussian",
            Map::Grass(_) => "GraSS",
            Map::Logra(_) => "LoGra",
            Map::FactGrass(_) => "FactGraSS",
            Map::Tile(_) => "TileSketch",
        };
        Error::Shape {
            op,
            expected,
            got,
            hint,
        }
    }
}

fn build_mask(spec: Spec) -> Result<Mask> {
    match spec {
        Spec::Mask { indices, input_dim } => Mask::explicit(indices, input_dim),
        Spec::RandomMask {
            input_dim,
            output_dim,
            seed,
            block,
        } => Mask::random(input_dim, output_dim, seed, block),
        other => Err(Error::spec(
            "compressor",
            "mask",
            "a mask or random_mask",
            other.to_json(),
        )),
    }
}

fn write_sjlt(
    sjlt: &Sjlt,
    scale: f64,
    coordinate: impl Fn(usize) -> usize,
    set: &mut impl FnMut(usize, usize, f64),
    workers: &Workers,
) -> Result<()> {
    for index in 0..sjlt.input_dim() {
        if index % CHECKED == 0 {
            workers.check()?;
        }
        let coordinate = coordinate(index);
        sjlt.for_each_entry(index, |bucket, sign| set(bucket, coordinate, sign * scale));
    }
    Ok(())
}
