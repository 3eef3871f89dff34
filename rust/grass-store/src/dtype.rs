//! How the numbers of a row are stored.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The type in which a store keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
    /// Whole numbers from -127 to 127 with one `f32` scale a row and column.
    Int8,
}

impl Dtype {
    /// The number that stands for the dtype in a shard's header.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Float32 => 1,
            Self::Float16 => 2,
            Self::Bfloat16 => 3,
            Self::Int8 => 4,
        }
    }

    /// The name in the manifest and in Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of one number.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Float32, Self::Float16, Self::Bfloat16, Self::Int8]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| Error::Dtype {
                got: name.to_owned(),
            })
    }
}
