//! How a row is laid out: columns side by side, and how many rows make a chunk.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A chunk is the largest power of two of rows that fits in this many bytes, at least one row.
/// Large enough that its checksum record is nothing beside it, small enough to be mapped whole.
const CHUNK_BYTES: u64 = 4 << 20;

/// A row is at most this long, so that no sum of lengths overflows and a lie is found early.
const MAX_ROW_BYTES: u64 = 1 << 32;

/// The scale of an int8 column in a row.
pub(crate) const SCALE_BYTES: usize = 4;

/// One block of the plan: a named run of coordinates in every row.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The block's name.
    pub name: String,
    /// How many coordinates it has.
    pub width: u64,
    /// The spec of its compressor.
    pub spec: Value,
}

impl Column {
    /// A column whose spec comes as JSON text.
    ///
    /// # Errors
    /// [`Error::Columns`] if the text is not a JSON object.
    pub fn new(name: impl Into<String>, width: u64, spec: &str) -> Result<Self> {
        let name = name.into();
        match serde_json::from_str(spec) {
            Ok(spec @ Value::Object(_)) => Ok(Self { name, width, spec }),
            _ => Err(Error::Columns {
                problem: format!("column {name:?} has a spec that is not a JSON object"),
                expected: "the compressor's spec as a dict of JSON values",
            }),
        }
    }
}

/// The layout of a store's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    dtype: Dtype,
    columns: Vec<Column>,
    /// Where each column begins, and at last the width of the row.
    offsets: Vec<usize>,
    row_bytes: usize,
}

impl Layout {
    /// The layout of rows with these columns, in this order, without gaps.
    ///
    /// # Errors
    /// [`Error::Columns`] if there is no column, one is empty, two have one name, or a row is too long.
    pub fn new(dtype: Dtype, columns: Vec<Column>) -> Result<Self> {
        let refuse = |problem, expected| Err(Error::Columns { problem, expected });
        if columns.is_empty() {
            return refuse("there is none".to_owned(), "at least one column");
        }
        let mut names = HashSet::new();
        let mut offsets = Vec::with_capacity(columns.len() + 1);
        let mut width = 0u64;
        for column in &columns {
            if !names.insert(column.name.as_str()) {
                return refuse(
                    format!("column {:?} is there twice", column.name),
                    "names that differ",
                );
            }
            if column.width == 0 {
                return refuse(
                    format!("column {:?} has width 0", column.name),
                    "a width of at least 1",
                );
            }
            offsets.push(width as usize);
            width = width.saturating_add(column.width);
        }
        offsets.push(width as usize);
        let mut row_bytes = width.saturating_mul(dtype.bytes());
        if dtype == Dtype::Int8 {
            row_bytes = row_bytes.saturating_add((columns.len() * SCALE_BYTES) as u64 + 3) & !3;
        }
        match usize::try_from(row_bytes) {
            Ok(bytes) if row_bytes <= MAX_ROW_BYTES => Ok(Self {
                dtype,
                columns,
                offsets,
                row_bytes: bytes,
            }),
            _ => refuse(
                format!("rows of {width} numbers are {row_bytes} bytes long"),
                "at most 4 GiB a row",
            ),
        }
    }

    /// The type of the stored numbers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The columns, in the order of a row.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// How many numbers a row has.
    pub fn width(&self) -> usize {
        self.offsets[self.columns.len()]
    }

    /// The coordinates of column `index` in a row.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn coordinates(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// The column that holds a coordinate of the row.
    pub(crate) fn column_of(&self, coordinate: usize) -> usize {
        self.offsets.partition_point(|&offset| offset <= coordinate) - 1
    }

    /// Length of a stored row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// How many rows make a chunk: a power of two that depends on the length of a row alone.
    pub fn chunk_rows(&self) -> u64 {
        let fitting = (CHUNK_BYTES / self.row_bytes as u64).max(1);
        1 << fitting.ilog2()
    }
}
