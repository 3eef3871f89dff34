//! Preconditioning and scoring of stored gradients, streamed from disk in bounded memory.
//!
//! [`score`] reads a store once for the Fisher matrices of as many blocks as fit the memory it is
//! given, applies their inverses to the queries, and reads the store once more for the scores. The
//! matrices are kept beside the store, so that later calls begin with the inverses.
//! [`score_to_file`] writes scores to disk as they are made, and goes on where it was stopped.
//! Rows come in by plain reads, chunk by chunk, and are multiplied as stored. Work is cut by rows
//! and columns of fixed number, so that scores have the same bits for any number of threads, any
//! memory, and however the rows were committed.

mod band;
mod cholesky;
mod chosen;
mod chunks;
mod dual;
mod error;
mod fisher_file;
mod gemm;
mod gram;
mod inverse;
mod preconditioner;
mod primal;
mod queries;
mod runs;
mod scorer;
mod scores_file;
mod self_influence;
mod sink;
mod stored_rows;
mod tiles;
mod topk;

pub use chosen::Chosen;
pub use chunks::query_rows;
pub use error::{Error, Result};
pub use preconditioner::{
    DEFAULT_MEMORY, DoubleQueries, Preconditioned, precondition, precondition_queries,
};
pub use scorer::{Method, Scores, score};
pub use scores_file::score_to_file;
pub use self_influence::self_influence;
