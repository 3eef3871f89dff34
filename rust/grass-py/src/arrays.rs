//! NumPy arrays as the core's arrays, without a copy.

use grass_core::dtype::Array;
use half::{bf16, f16};
use ndarray::{ArrayView, Dimension};
use numpy::{Element, PyArray, PyArrayMethods, PyReadonlyArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::exception;

/// A NumPy array of floats that Python may read while the core does; bfloat16 comes as its bits in uint16.
pub enum FloatArray<'py, D: Dimension> {
    F64(PyReadonlyArray<'py, f64, D>),
    F32(PyReadonlyArray<'py, f32, D>),
    F16(PyReadonlyArray<'py, f16, D>),
    Bf16(PyReadonlyArray<'py, u16, D>),
}

impl<'py, D: Dimension> FloatArray<'py, D> {
    /// Borrows `array`.
    ///
    /// # Errors
    /// `UnsupportedArrayError` for another dtype or number of axes, or elements that are not aligned.
    pub fn borrow(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Some(array) = readonly(array)? {
            return Ok(Self::F32(array));
        }
        if let Some(array) = readonly(array)? {
            return Ok(Self::F64(array));
        }
        if let Some(array) = readonly(array)? {
            return Ok(Self::F16(array));
        }
        if let Some(array) = readonly(array)? {
            return Ok(Self::Bf16(array));
        }
        Err(exception(
            "UnsupportedArrayError",
            format!(
                "expected a NumPy array of float64, float32, float16 or bfloat16 bits with {} axes, got {}",
                D::NDIM.unwrap_or_default(),
                array.get_type().name()?
            ),
        ))
    }

    /// The array as the core takes it.
    pub fn view(&self) -> Array<'_, D> {
        match self {
            Self::F64(array) => Array::F64(array.as_array()),
            Self::F32(array) => Array::F32(array.as_array()),
            Self::F16(array) => Array::F16(array.as_array()),
            Self::Bf16(array) => Array::Bf16(bits_as_bf16(array.as_array())),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "ndarray has no safe cast between types of the same layout"
)]
fn bits_as_bf16<D: Dimension>(bits: ArrayView<'_, u16, D>) -> ArrayView<'_, bf16, D> {
    let values = bits.raw_view().cast::<bf16>();
    // SAFETY: bf16 is a transparent wrapper of u16, so every element of the borrowed view is a valid bf16 in place; the
    // view's lifetime is that of the borrow.
    unsafe { values.deref_into_view() }
}

fn readonly<'py, T: Element, D: Dimension>(
    array: &Bound<'py, PyAny>,
) -> PyResult<Option<PyReadonlyArray<'py, T, D>>> {
    let Ok(array) = array.cast::<PyArray<T, D>>() else {
        return Ok(None);
    };
    let size = size_of::<T>();
    let aligned = (array.data() as usize).is_multiple_of(align_of::<T>())
        && array
            .strides()
            .iter()
            .all(|&stride| stride.unsigned_abs().is_multiple_of(size));
    if !aligned {
        return Err(exception(
            "UnsupportedArrayError",
            "expected an aligned array, got one whose elements are not: pass numpy.ascontiguousarray of it".into(),
        ));
    }
    Ok(Some(array.try_readonly()?))
}
