//! What can go wrong in the core, each with what was expected and what came.

/// Every error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An array of the wrong shape.
    #[error("{op} expects {expected}, got {got}: {hint}")]
    Shape {
        /// The compressor or function called.
        op: &'static str,
        /// The shape it takes.
        expected: String,
        /// The shape that came.
        got: String,
        /// What to do.
        hint: String,
    },
    /// A compressor that cannot be built from its arguments.
    #[error("{kind}: {argument} must be {expected}, got {got}")]
    Spec {
        /// The compressor's type name.
        kind: String,
        /// The argument at fault.
        argument: String,
        /// What it may be.
        expected: String,
        /// What came.
        got: String,
    },
    /// Bytes that are not a serialised compressor.
    #[error(
        "serialised compressor: expected {expected}, got {got}: the bytes are damaged or not from this library"
    )]
    Bytes {
        /// What was expected at this place.
        expected: String,
        /// What was there.
        got: String,
    },
    /// The call was cancelled by its owner.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn spec(
        kind: impl Into<String>,
        argument: impl Into<String>,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Spec {
            kind: kind.into(),
            argument: argument.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }
}

/// The result of a fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;
