//! Element types of the input, and arrays of any of them with any strides.

mod element;

use half::{bf16, f16};
use ndarray::{ArrayView, ArrayView1, ArrayView3, Axis, Dimension, Ix2, Ix3, s};

pub use element::Element;

/// A read-only array of any [`Element`] type and any strides.
#[derive(Debug, Clone)]
pub enum Array<'a, D: Dimension> {
    /// Double precision.
    F64(ArrayView<'a, f64, D>),
    /// Single precision.
    F32(ArrayView<'a, f32, D>),
    /// IEEE half precision.
    F16(ArrayView<'a, f16, D>),
    /// Brain floating point.
    Bf16(ArrayView<'a, bf16, D>),
}

/// Rows of gradients, `(n, p)`.
pub type Matrix<'a> = Array<'a, Ix2>;

/// Vectors of the tokens of some examples, `(n, t, d)`.
pub type Tokens<'a> = Array<'a, Ix3>;

/// A factor of a linear layer's gradients: `values`, and after their last column one of ones where `ones` says so. The
/// ones are the layer's bias, as an input that nobody need write.
#[derive(Debug, Clone)]
pub struct Factor<'a> {
    /// `(n, t, d)`, or `(n, t, d - 1)` with `ones`.
    pub values: Tokens<'a>,
    /// Whether a last column of ones follows.
    pub ones: bool,
}

impl Factor<'_> {
    /// n, t and d.
    pub fn shape(&self) -> [usize; 3] {
        let shape = self.values.shape();
        [shape[0], shape[1], shape[2] + usize::from(self.ones)]
    }

    /// Example and token of a row, where the rows are the tokens of one example after another.
    fn position(&self, row: usize) -> (usize, usize) {
        let tokens = self.values.shape()[1];
        (row / tokens, row % tokens)
    }
}

impl<'a> From<Tokens<'a>> for Factor<'a> {
    fn from(values: Tokens<'a>) -> Self {
        Self {
            values,
            ones: false,
        }
    }
}

macro_rules! with_view {
    ($array:expr, $view:ident => $body:expr) => {
        match $array {
            Array::F64($view) => $body,
            Array::F32($view) => $body,
            Array::F16($view) => $body,
            Array::Bf16($view) => $body,
        }
    };
}

impl<D: Dimension> Array<'_, D> {
    /// Length of each axis.
    pub fn shape(&self) -> &[usize] {
        with_view!(self, view => view.shape())
    }
}

/// Neighbouring coordinates of a row as they lie in memory.
pub(crate) enum InPlace<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// They do not lie side by side, or are of a type that is converted before it is read.
    Nowhere,
}

/// Rows that a projection reads, a tile of coordinates at a time.
pub(crate) trait Rows: Sync {
    /// How many rows there are.
    fn count(&self) -> usize;

    /// Coordinates `start..start + len` of a row where they can be read in place, else nothing.
    fn in_place(&self, row: usize, start: usize, len: usize) -> &[f32];

    /// Coordinates `start..start + len` of a row where they lie.
    fn typed(&self, row: usize, start: usize, len: usize) -> InPlace<'_> {
        match self.in_place(row, start, len) {
            [] => InPlace::Nowhere,
            values => InPlace::F32(values),
        }
    }

    /// Coordinates `start..start + buffer.len()` of a row, in `buffer` or, where they can be read in place, elsewhere.
    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32];
}

/// Rows that a mask reads, single coordinates.
pub(crate) trait Gather: Sync {
    /// Writes the coordinates `indices` of a row to `target`.
    fn gather(&self, row: usize, indices: &[u64], target: &mut [f32]);
}

/// One token, quicker than by a slice.
fn token_of<'a, T>(view: &ArrayView3<'a, T>, example: usize, token: usize) -> ArrayView1<'a, T> {
    (*view)
        .index_axis_move(Axis(0), example)
        .index_axis_move(Axis(0), token)
}

fn in_place(row: ArrayView1<'_, f32>, start: usize, len: usize) -> &[f32] {
    row.to_slice()
        .map_or(&[], |values| &values[start..start + len])
}

fn tile_of<'a, T: Element>(
    row: ArrayView1<'a, T>,
    start: usize,
    buffer: &'a mut [f32],
) -> &'a [f32] {
    if let Some(values) = row.to_slice() {
        return T::slice_as_f32(&values[start..start + buffer.len()], buffer);
    }
    copy_tile(row, start, buffer);
    buffer
}

fn copy_tile<T: Element>(row: ArrayView1<T>, start: usize, buffer: &mut [f32]) {
    let end = start + buffer.len();
    for (target, value) in buffer.iter_mut().zip(row.slice_move(s![start..end])) {
        *target = value.to_f32();
    }
}

fn gather_from<T: Element>(row: ArrayView1<T>, indices: &[u64], target: &mut [f32]) {
    match row.to_slice() {
        Some(values) => {
            for (target, &index) in target.iter_mut().zip(indices) {
                *target = values[index as usize].to_f32();
            }
        }
        None => {
            for (target, &index) in target.iter_mut().zip(indices) {
                *target = row[index as usize].to_f32();
            }
        }
    }
}

impl Rows for Matrix<'_> {
    fn count(&self) -> usize {
        self.shape()[0]
    }

    fn in_place(&self, row: usize, start: usize, len: usize) -> &[f32] {
        match self {
            Array::F32(view) => in_place(view.row(row), start, len),
            _ => &[],
        }
    }

    fn typed(&self, row: usize, start: usize, len: usize) -> InPlace<'_> {
        let end = start + len;
        let found = match self {
            Array::F64(_) => None,
            Array::F32(view) => view
                .row(row)
                .to_slice()
                .map(|row| InPlace::F32(&row[start..end])),
            Array::F16(view) => view
                .row(row)
                .to_slice()
                .map(|row| InPlace::F16(&row[start..end])),
            Array::Bf16(view) => view
                .row(row)
                .to_slice()
                .map(|row| InPlace::Bf16(&row[start..end])),
        };
        found.unwrap_or(InPlace::Nowhere)
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        with_view!(self, view => tile_of(view.row(row), start, buffer))
    }
}

impl Gather for Matrix<'_> {
    fn gather(&self, row: usize, indices: &[u64], target: &mut [f32]) {
        with_view!(self, view => gather_from(view.row(row), indices, target));
    }
}

impl Factor<'_> {
    /// Gathers the features `indices`, which are sorted, of some rows into panels of `WIDTH` columns (see
    /// [`crate::panels`]).
    pub(crate) fn gather_panels<const WIDTH: usize>(
        &self,
        rows: std::ops::Range<usize>,
        indices: &[u64],
        panels: &mut [f32],
    ) {
        // Sorted: the column of ones can only be the last.
        let column = self.values.shape()[2] as u64;
        let held = indices.len() - usize::from(self.ones && indices.last() == Some(&column));
        let range = rows.clone();
        with_view!(&self.values, view => gather_panels_from::<_, WIDTH>(view, range, &indices[..held], panels));
        if held < indices.len() {
            let (panels, _) = panels.as_chunks_mut::<WIDTH>();
            for panel in &mut panels[held / WIDTH * rows.len()..][..rows.len()] {
                panel[held % WIDTH..].fill(0.0);
                panel[held % WIDTH] = 1.0;
            }
        }
    }
}

fn gather_panels_from<T: Element, const WIDTH: usize>(
    view: &ArrayView3<T>,
    rows: std::ops::Range<usize>,
    indices: &[u64],
    panels: &mut [f32],
) {
    let tokens = view.shape()[1];
    let (panels, _) = panels.as_chunks_mut::<WIDTH>();
    for (number, row) in rows.clone().enumerate() {
        let values = token_of(view, row / tokens, row % tokens);
        let panels = panels.iter_mut().skip(number).step_by(rows.len());
        for (panel, indices) in panels.zip(indices.chunks(WIDTH)) {
            gather_from(values, indices, &mut panel[..indices.len()]);
            panel[indices.len()..].fill(0.0);
        }
    }
}

impl Rows for Factor<'_> {
    fn count(&self) -> usize {
        let [n, tokens, _] = self.shape();
        n * tokens
    }

    fn in_place(&self, row: usize, start: usize, len: usize) -> &[f32] {
        let (example, token) = self.position(row);
        match &self.values {
            Array::F32(view) if start + len <= view.shape()[2] => {
                in_place(token_of(view, example, token), start, len)
            }
            _ => &[],
        }
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        let (example, token) = self.position(row);
        let held = buffer.len().min(self.values.shape()[2] - start);
        with_view!(&self.values, view => {
            let row = token_of(view, example, token);
            if held == buffer.len() {
                return tile_of(row, start, buffer);
            }
            let (values, ones) = buffer.split_at_mut(held);
            copy_tile(row, start, values);
            ones.fill(1.0);
            buffer
        })
    }
}

/// Some neighbouring rows of others.
pub(crate) struct Range<'a> {
    rows: &'a dyn Rows,
    range: std::ops::Range<usize>,
}

impl<'a> Range<'a> {
    pub(crate) fn new(rows: &'a dyn Rows, range: std::ops::Range<usize>) -> Self {
        Self { rows, range }
    }
}

impl Rows for Range<'_> {
    fn count(&self) -> usize {
        self.range.len()
    }

    fn in_place(&self, row: usize, start: usize, len: usize) -> &[f32] {
        self.rows.in_place(self.range.start + row, start, len)
    }

    fn tile<'a>(&'a self, row: usize, start: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        self.rows.tile(self.range.start + row, start, buffer)
    }
}
