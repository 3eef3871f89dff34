//! How a row is laid out: columns side by side, and how many rows make a chunk.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A chunk is the largest power of two of rows that fits in this many bytes, at least one row.
/// Large enough that its checksum record is nothing beside it, small enough to be held whole.
const CHUNK_BYTES: u64 = 1 << 20;

/// A row is at most this long, so that no sum of lengths overflows and a lie is found early.
const MAX_ROW_BYTES: u64 = 1 << 32;

/// Objects and lists of a spec are nested at most so deep: readers of JSON stop somewhere above.
const MAX_NESTING: usize = 64;

/// The scale of an int8 column in a row.
const SCALE_BYTES: usize = 4;

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
    /// [`Error::Columns`] if there is no column, one is empty, two have one name, a spec has numbers
    /// that are not whole or is nested without end, or a row is too long.
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
            if let Some(problem) = uncanonical(&column.spec, MAX_NESTING) {
                return refuse(
                    format!("column {:?} has a spec with {problem}", column.name),
                    "a spec of whole numbers, strings, lists and objects",
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

    /// Length of the scales that an int8 row begins with, one of 4 bytes a column; 0 for other dtypes.
    pub fn scale_bytes(&self) -> usize {
        match self.dtype {
            Dtype::Int8 => self.columns.len() * SCALE_BYTES,
            Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16 => 0,
        }
    }

    /// How many rows make a chunk: a power of two that depends on the length of a row alone.
    pub fn chunk_rows(&self) -> u64 {
        let fitting = (CHUNK_BYTES / self.row_bytes as u64).max(1);
        1 << fitting.ilog2()
    }
}

/// What keeps a spec from having one text in JSON, the same for every writer: the digits of numbers
/// that are not whole differ between libraries.
fn uncanonical(spec: &Value, levels: usize) -> Option<String> {
    let parts: Vec<&Value> = match spec {
        Value::Number(number) if number.is_f64() => {
            return Some(format!(
                "{number}, which is not whole or has more than 64 bits"
            ));
        }
        Value::Array(parts) => parts.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => return None,
    };
    match levels {
        0 => Some(format!("more than {MAX_NESTING} levels")),
        _ => parts
            .into_iter()
            .find_map(|part| uncanonical(part, levels - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &str) -> Option<String> {
        let column = Column::new("fc", 3, spec).unwrap();
        Layout::new(Dtype::Float32, vec![column])
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn specs_without_one_text_are_refused() {
        for (spec, words) in [
            (
                r#"{"a":1.0}"#,
                "fc\" has a spec with 1.0, which is not whole",
            ),
            (r#"{"a":[{"b":1e-5}]}"#, "which is not whole"),
            (r#"{"a":18446744073709551616}"#, "more than 64 bits"),
        ] {
            let message = refused(spec).unwrap();
            assert!(message.contains(words), "{message}");
        }
        let whole = r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":["x",null,true,0]}"#;
        assert_eq!(refused(whole), None);
    }

    #[test]
    fn specs_are_nested_so_deep_and_no_deeper() {
        let nested = |levels| format!("{}{}", r#"{"a":"#.repeat(levels) + "0", "}".repeat(levels));
        assert_eq!(refused(&nested(MAX_NESTING)), None);
        let message = refused(&nested(MAX_NESTING + 1)).unwrap();
        assert!(message.contains("more than 64 levels"), "{message}");
    }
}
