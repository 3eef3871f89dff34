//! What can go wrong in scoring, each with what was expected, what came, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// The result of a fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] grass_store::Error),
    /// The call was cancelled by its owner.
    #[error(transparent)]
    Core(#[from] grass_core::Error),
    /// A store that is still being written.
    #[error("the store {} is unfinished: run the command that caches it again to the end, then score", path.display())]
    Unfinished {
        /// The store.
        path: PathBuf,
    },
    /// A store without rows.
    #[error("the store {} has no rows, scores need at least one: cache some examples first", path.display())]
    Empty {
        /// The store.
        path: PathBuf,
    },
    /// Queries that do not fit the store.
    #[error(
        "score expects queries of shape (n, {width}) with n of at least 1, got {got}: give rows compressed by the store's plan"
    )]
    Queries {
        /// The width of the store's rows.
        width: usize,
        /// The shape that came.
        got: String,
    },
    /// A query with a NaN or an infinity.
    #[error(
        "query {query} has {value} in column {column:?}, expected finite numbers: leave the query out or mend its gradient"
    )]
    NonFiniteQuery {
        /// The query's number.
        query: usize,
        /// The column.
        column: String,
        /// The value.
        value: f32,
    },
    /// Stored rows with a NaN or an infinity.
    #[error(
        "column {column:?} of the store holds NaN or infinity, expected finite rows: cache again and leave out such examples"
    )]
    NonFiniteRows {
        /// The column.
        column: String,
    },
    /// A score that is not a number that `f32` holds.
    #[error("the score of id {id} for query {query} is {value}: {reason}")]
    NonFiniteScore {
        /// The training example.
        id: u64,
        /// The query's number.
        query: usize,
        /// The score.
        value: f32,
        /// Whether it is the row's fault, and what to do.
        reason: &'static str,
    },
    /// Columns that cannot be chosen so.
    #[error("scoring expects {expected}, got {got}: number the columns of this store")]
    Columns {
        /// What they must be.
        expected: String,
        /// What came.
        got: String,
    },
    /// A damping that is not a number from 0 on.
    #[error("damping must be a finite number of at least 0, got {got}: the default is 0.4")]
    Damping {
        /// What came, in words.
        got: String,
    },
    /// A method of another name.
    #[error("method must be one of influence, graddot, gradcos, got {got:?}")]
    Method {
        /// What came.
        got: String,
    },
    /// A number of kept scores that cannot be.
    #[error("top_k must be a whole number from 1 to {rows}, the rows of the store, got {got}")]
    TopK {
        /// How many rows there are.
        rows: usize,
        /// What came, in words.
        got: String,
    },
    /// A Fisher matrix that has no inverse.
    #[error(
        "the Fisher matrix of column {column:?} with damping {damping:e} is singular to working precision: raise damping (the default is 0.4)"
    )]
    Singular {
        /// The column.
        column: String,
        /// The damping.
        damping: f64,
    },
    /// Not enough memory.
    #[error("{what} takes {bytes} bytes, more than there is: {hint}")]
    Memory {
        /// What the memory is for.
        what: String,
        /// How much of it.
        bytes: u128,
        /// What to do.
        hint: &'static str,
    },
    /// The operating system refused what a file of scores needs.
    #[error("cannot {action} {}: {source}: {hint}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// An unfinished file of scores that another call began.
    #[error("{} was begun by another call (other store, queries, method or damping): make that call again to finish it, delete the file to drop it, or give another out", path.display())]
    OtherFile {
        /// The unfinished file.
        path: PathBuf,
    },
    /// A file of scores that somebody else is writing.
    #[error("the scores {} are being written by another call: wait for it, or give another out", path.display())]
    BusyFile {
        /// The finished file's path.
        path: PathBuf,
    },
}

impl Error {
    /// The system's error number, where the system refused a file of scores.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| {
            let hint = match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space and make the same call again, which goes on from there"
                }
                io::ErrorKind::FileTooLarge => {
                    "raise the file size limit and make the same call again, which goes on from there"
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "choose a folder that you may write, or change its permissions"
                }
                io::ErrorKind::NotFound => "check that its folder is there",
                io::ErrorKind::IsADirectory => "name a file in it",
                _ => "check the disk and the path",
            };
            Self::File {
                action,
                path,
                source,
                hint,
            }
        }
    }
}
