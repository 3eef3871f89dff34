//! Specs: what a compressor is, as plain values, and how they are written.
//!
//! A spec's canonical form is JSON with sorted keys, no spaces, ASCII. The fingerprint is its SHA-256.
//! The serialised structure is magic, format version, length, canonical JSON, CRC-32, little endian.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"GRASSCMP";
const FORMAT: u32 = 1;
const HEADER: usize = 16;
const CRC: usize = 4;

/// How coordinates find their buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SjltKind {
    /// Pages of coordinates, each turned by one rotation.
    Cyclic,
    /// A bucket drawn for each coordinate.
    Iid,
}

/// Distribution of a dense projection's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GaussianKind {
    /// Standard normal.
    Normal,
    /// -1 or 1, each with probability 1/2.
    Rademacher,
}

/// Everything that determines a compressor: its type and its constructor's arguments, defaults resolved.
#[expect(missing_docs, reason = "the fields are the constructors' arguments")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spec {
    Mask {
        indices: Vec<u64>,
        input_dim: usize,
    },
    RandomMask {
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        block: usize,
    },
    Sjlt {
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        nnz: usize,
        kind: SjltKind,
    },
    Gaussian {
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        kind: GaussianKind,
    },
    Grass {
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        mask_dim: usize,
        mask: Box<Spec>,
        kind: SjltKind,
    },
    Logra {
        in_features: usize,
        out_features: usize,
        rank_in: usize,
        rank_out: usize,
        seed: u64,
    },
    Factgrass {
        in_features: usize,
        out_features: usize,
        output_dim: usize,
        seed: u64,
        mask_in: Box<Spec>,
        mask_out: Box<Spec>,
        kind: SjltKind,
    },
    Tile {
        in_features: usize,
        out_features: usize,
        output_dim: usize,
        seed: u64,
    },
}

impl Spec {
    /// The spec in canonical JSON.
    pub fn to_json(&self) -> String {
        // A JSON object of serde_json keeps its keys sorted.
        serde_json::to_value(self)
            .expect("a spec holds numbers and names alone")
            .to_string()
    }

    /// Reads a spec from JSON with its keys in any order.
    ///
    /// # Errors
    /// [`Error::Spec`] for unknown types and keys, missing keys, and values that are not what the key takes.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| {
            Error::spec(
                "compressor",
                "spec",
                "a known type with its arguments",
                error,
            )
        })
    }

    /// SHA-256 of the canonical JSON, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.to_json())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The serialised structure.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = self.to_json();
        let mut bytes = Vec::with_capacity(HEADER + json.len() + CRC);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a serialised structure. Allocates no more than the bytes' own length.
    ///
    /// # Errors
    /// [`Error::Bytes`] for anything that [`Spec::to_bytes`] does not write.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = |expected: &str, got: String| Error::Bytes {
            expected: expected.into(),
            got,
        };
        if !bytes.starts_with(MAGIC) {
            return Err(damaged(
                "the magic GRASSCMP",
                format!("{} other bytes", bytes.len()),
            ));
        }
        if bytes.len() < HEADER + CRC {
            return Err(damaged("at least 20 bytes", bytes.len().to_string()));
        }
        let format = u32_at(bytes, 8);
        if format != FORMAT {
            return Err(damaged("format version 1", format.to_string()));
        }
        let length = u32_at(bytes, 12) as usize;
        let body = bytes.len() - HEADER - CRC;
        if length != body {
            return Err(damaged(
                &format!("{length} bytes of JSON"),
                body.to_string(),
            ));
        }
        let (content, crc) = bytes.split_at(HEADER + length);
        let (stored, computed) = (u32_at(crc, 0), crc32fast::hash(content));
        if stored != computed {
            return Err(damaged(
                &format!("CRC-32 {stored:08x}"),
                format!("{computed:08x}"),
            ));
        }
        let json = &content[HEADER..];
        let spec: Self = serde_json::from_slice(json)
            .map_err(|error| damaged("a known spec", error.to_string()))?;
        if spec.to_json().as_bytes() != json {
            return Err(damaged(
                "canonical JSON",
                "the same spec written otherwise".into(),
            ));
        }
        Ok(spec)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Refuses a dimension of zero.
pub(crate) fn check_count(kind: &str, argument: &str, value: usize) -> Result<()> {
    if value == 0 {
        return Err(Error::spec(kind, argument, "at least 1", value));
    }
    Ok(())
}

/// Refuses dimensions whose product does not fit the positions of a random stream.
pub(crate) fn check_range(kind: &str, argument: &str, factors: &[usize]) -> Result<()> {
    let product = factors.iter().try_fold(1usize, |product, &factor| {
        product
            .checked_mul(factor)
            .filter(|&product| product < 1 << 62)
    });
    if product.is_none() {
        let got = factors.iter().map(ToString::to_string);
        return Err(Error::spec(
            kind,
            argument,
            "small enough that all dimensions together stay below 2^62",
            got.collect::<Vec<_>>().join(" x "),
        ));
    }
    Ok(())
}
