//! Preconditioning and scoring of stored gradients, streamed from disk in bounded memory.
//!
//! [`score`] reads a store once for the Fisher matrices of as many blocks as fit the memory it is
//! given, applies their inverses to the queries, and reads the store once more for the scores.
//! Work is cut by rows and columns of fixed number, so that scores have the same bits for any
//! number of threads, any memory, and however the rows were committed.

mod cholesky;
mod chunks;
mod dual;
mod error;
mod gemm;
mod preconditioner;
mod primal;
mod scorer;
mod topk;

pub use chunks::query_rows;
pub use error::{Error, Result};
pub use preconditioner::{DEFAULT_MEMORY, precondition};
pub use scorer::{Method, Scores, score};
