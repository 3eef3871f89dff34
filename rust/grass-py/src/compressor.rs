//! `_native.Compressor`: the core's compressor on NumPy arrays.

use grass_core::dtype::Factor;
use grass_core::spec::Spec;
use numpy::{Ix2, Ix3, PyArray1, PyReadwriteArray2};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrays::FloatArray;
use crate::detached::detached;
use crate::error::{PyError, exception};

/// A compressor of any type, built from its spec.
#[pyclass(frozen, weakref, module = "grass_rs._native")]
struct Compressor {
    inner: grass_core::Compressor,
}

#[pymethods]
impl Compressor {
    /// Build the compressor of a spec in JSON.
    #[staticmethod]
    fn from_spec(spec: &str) -> Result<Self, PyError> {
        let inner = grass_core::Compressor::from_spec(Spec::from_json(spec)?)?;
        Ok(Self { inner })
    }

    /// Read a serialised structure.
    #[staticmethod]
    fn from_bytes(data: &[u8]) -> Result<Self, PyError> {
        let inner = grass_core::Compressor::from_spec(Spec::from_bytes(data)?)?;
        Ok(Self { inner })
    }

    /// Coordinates of the input.
    #[getter]
    fn input_dim(&self) -> usize {
        self.inner.input_dim()
    }

    /// Coordinates of the output.
    #[getter]
    fn output_dim(&self) -> usize {
        self.inner.output_dim()
    }

    /// Inputs and outputs of the layer that a factorised compressor takes, None for the others.
    #[getter]
    fn features(&self) -> Option<(usize, usize)> {
        self.inner.features()
    }

    /// The spec in canonical JSON.
    #[getter]
    fn spec(&self) -> String {
        self.inner.spec().to_json()
    }

    /// SHA-256 of the spec.
    #[getter]
    fn fingerprint(&self) -> String {
        self.inner.spec().fingerprint()
    }

    /// The serialised structure.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.spec().to_bytes())
    }

    /// The coordinates that a mask keeps.
    fn indices<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let Some(mask) = self.inner.mask() else {
            return Err(exception(
                "SpecError",
                format!("expected a mask, got {}", self.spec()),
            ));
        };
        let indices = detached(py, mask.drawing_operations(), |workers| {
            mask.indices(workers)
        })?;
        Ok(PyArray1::from_slice(py, indices))
    }

    /// Compress rows (n, p) to out (n, k).
    fn compress(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        mut out: PyReadwriteArray2<'_, f32>,
    ) -> PyResult<()> {
        let rows = FloatArray::<Ix2>::borrow(rows)?;
        let (rows, out) = (rows.view(), out_slice(&mut out)?);
        let operations = self.inner.operations(rows.shape()[0], 1);
        detached(py, operations, |workers| {
            self.inner.compress(&rows, out, workers)
        })
    }

    /// Compress the factors (n, t, d_in) and (n, t, d_out) of a linear layer's gradients to out (n, k). With bias, the
    /// last column of inputs is one of ones that the array does not hold.
    fn compress_factors(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyAny>,
        grad_outputs: &Bound<'_, PyAny>,
        bias: bool,
        mut out: PyReadwriteArray2<'_, f32>,
    ) -> PyResult<()> {
        let inputs = FloatArray::<Ix3>::borrow(inputs)?;
        let grad_outputs = FloatArray::<Ix3>::borrow(grad_outputs)?;
        let inputs = Factor {
            values: inputs.view(),
            ones: bias,
        };
        let grad_outputs = Factor::from(grad_outputs.view());
        let out = out_slice(&mut out)?;
        let operations = self.inner.operations(inputs.shape()[0], inputs.shape()[1]);
        detached(py, operations, |workers| {
            self.inner
                .compress_factors(&inputs, &grad_outputs, out, workers)
        })
    }

    /// Write the dense matrix to out (k, p).
    fn write_dense(&self, py: Python<'_>, mut out: PyReadwriteArray2<'_, f32>) -> PyResult<()> {
        let out = out_slice(&mut out)?;
        detached(py, out.len().saturating_mul(8), |workers| {
            self.inner.write_dense(out, workers)
        })
    }
}

fn out_slice<'a>(out: &'a mut PyReadwriteArray2<'_, f32>) -> PyResult<&'a mut [f32]> {
    out.as_slice_mut().map_err(|_| {
        exception(
            "ShapeError",
            "out expects a C-contiguous array, got a strided one: pass numpy.empty of the shape"
                .into(),
        )
    })
}

/// Seed of the part called label of a structure with this seed.
#[pyfunction]
fn derive(seed: u64, label: &str) -> u64 {
    grass_core::philox::derive(seed, label)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Compressor>()?;
    module.add_function(wrap_pyfunction!(derive, module)?)
}
