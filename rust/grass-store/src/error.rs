//! What can go wrong with a store, each with what was expected, what came, and what to do.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;
use crate::manifest::MAX_SHARD;

/// The most damaged places that a message names.
const LISTED: usize = 20;

/// The result of a fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}: {hint}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// There is no store at the path.
    #[error("no store at {}: expected a folder with manifest.json, found {found}: check the path", path.display())]
    NotFound {
        /// Where a store was looked for.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// There is already something where a store was to be created.
    #[error("cannot create a store at {}: {found} is already there: {hint}", path.display())]
    Exists {
        /// Where the store was to be created.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Another writer holds the store, or another call its manifest.
    #[error("the store {} is being {action} by {holder}: {hint}", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// What is done to it.
        action: &'static str,
        /// Who holds it, in words.
        holder: String,
        /// What to do.
        hint: &'static str,
    },
    /// The store was made with something else than what it is now opened with.
    #[error("the store {} does not fit: {difference}: use what the store was made with, or another path", path.display())]
    Mismatch {
        /// The store.
        path: PathBuf,
        /// The first difference: which column or fingerprint, what the store has, what came.
        difference: String,
    },
    /// Bytes are damaged or missing.
    #[error("the store {} is damaged in {}: {}: restore these files, or drop what is damaged with grass-rs repair", path.display(), places(damage.len()), list(damage))]
    Corrupt {
        /// The store.
        path: PathBuf,
        /// Everything found.
        damage: Vec<Damage>,
    },
    /// A repair was begun and not ended, or has nothing to begin with.
    #[error("the store {} cannot be used: {problem}: {hint}", path.display())]
    Repair {
        /// The store.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The store was written by a later version of this library.
    #[error("the store {} has format {found}, this version reads format 1: install a newer grass_rs", path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// Its format number.
        found: u64,
    },
    /// Columns that no row can have.
    #[error("store columns: {problem}, expected {expected}")]
    Columns {
        /// What is wrong, and where.
        problem: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A dtype that does not exist.
    #[error("store dtype must be one of float32, float16, bfloat16, int8, got {got:?}")]
    Dtype {
        /// What was asked for.
        got: String,
    },
    /// Rows of the wrong shape.
    #[error("append expects rows of shape {expected}, got {got}: {hint}")]
    Shape {
        /// The shape it takes.
        expected: String,
        /// The shape that came.
        got: String,
        /// What to do.
        hint: &'static str,
    },
    /// An id that is already there.
    #[error("id {id} is {place}: every example needs an id of its own, so give different ids")]
    RepeatedId {
        /// The id.
        id: u64,
        /// Where it was seen before.
        place: &'static str,
    },
    /// Writers that a store cannot have.
    #[error("a store has 1 to {} writers numbered from 0, got writer {writer} of {writers}: give writer < writers", MAX_SHARD + 1)]
    Writers {
        /// The number of the writer.
        writer: u32,
        /// How many there are to be.
        writers: u32,
    },
    /// A store that has no number for another shard.
    #[error("the store {} would need shards with numbers above {MAX_SHARD}, which have no names: put the further rows into another store", path.display())]
    TooManyShards {
        /// The store.
        path: PathBuf,
    },
    /// Stores that cannot be merged.
    #[error("cannot merge into {}: {problem}: {hint}", path.display())]
    Merge {
        /// The store to merge into.
        path: PathBuf,
        /// What is in the way.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A row that is not finite where rows must be.
    #[error(
        "append expects finite rows, got a NaN or an infinity, or more than float32 holds, in the row of id {id}: leave the example out"
    )]
    NonFinite {
        /// The row's id.
        id: u64,
    },
    /// A value that the dtype cannot hold.
    #[error(
        "the row of id {id} has {value:e} in column {column:?}, more than {dtype} holds ({largest:e}): use dtype \"float32\""
    )]
    Overflow {
        /// The row's id.
        id: u64,
        /// The column.
        column: String,
        /// The value.
        value: f32,
        /// The dtype.
        dtype: Dtype,
        /// The largest number of the dtype.
        largest: f32,
    },
    /// A row that is not there.
    #[error("row {row} is out of range for a store of {rows} rows")]
    OutOfRange {
        /// The row asked for.
        row: u64,
        /// How many there are.
        rows: u64,
    },
    /// The writer cannot go on.
    #[error("the writer of {} stopped at an earlier error ({reason}): what was committed is safe; mend the cause and open the store again with resume", path.display())]
    Broken {
        /// The store.
        path: PathBuf,
        /// The earlier error.
        reason: String,
    },
    /// The call was cancelled by its owner, or the core refused it.
    #[error(transparent)]
    Core(#[from] grass_core::Error),
}

impl Error {
    /// The system's error number, where the system refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| {
            let hint = match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space; what was committed is safe"
                }
                io::ErrorKind::FileTooLarge => {
                    "raise the file size limit; what was committed is safe"
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "choose a folder that you may write, or change its permissions"
                }
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::IsADirectory | io::ErrorKind::NotSeekable => {
                    "move it away, and put the file there that the store had, if any"
                }
                _ => "check the disk and the path",
            };
            Self::Io {
                action,
                path,
                source,
                hint,
            }
        }
    }

    /// What everybody but a repair is told while the journal of a repair is there.
    pub(crate) fn repair_interrupted(path: &Path) -> Self {
        Self::Repair {
            path: path.to_path_buf(),
            problem: "a repair was interrupted".to_owned(),
            hint: "run grass-rs repair again".to_owned(),
        }
    }

    /// What everybody but a repair is told where only the copy of the manifest is there.
    pub(crate) fn manifest_lost(path: &Path) -> Self {
        Self::Repair {
            path: path.to_path_buf(),
            problem: "manifest.json is missing, but its copy manifest.copy.json is there"
                .to_owned(),
            hint: format!("run grass-rs repair {}", path.display()),
        }
    }

    pub(crate) fn corrupt(path: &Path, damage: Damage) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            damage: vec![damage],
        }
    }

    /// An error if there is any damage, which then lists it in the order of its places.
    pub(crate) fn unless_whole(path: &Path, mut damage: Vec<Damage>) -> Result<()> {
        if damage.is_empty() {
            return Ok(());
        }
        damage.sort_by_key(Damage::place);
        Err(Self::Corrupt {
            path: path.to_path_buf(),
            damage,
        })
    }
}

/// The file of a store that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `manifest.json`.
    Manifest,
    /// The first 4096 bytes of a `.rows` file.
    Header,
    /// The rows.
    Rows,
    /// The ids.
    Ids,
    /// The commit log.
    Log,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Header => "header",
            Self::Rows => "rows",
            Self::Ids => "ids",
            Self::Log => "log",
        })
    }
}

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The shard's number; `None` for the manifest.
    pub shard: Option<u32>,
    /// Which of its files.
    pub part: Part,
    /// The chunk's number in the shard, where the damage is in one chunk.
    pub chunk: Option<u64>,
    /// The rows that it concerns, counted over the whole store.
    pub rows: Option<Range<u64>>,
    /// What was expected and what was found.
    pub problem: String,
}

impl Damage {
    pub(crate) fn manifest(problem: impl Into<String>) -> Self {
        Self {
            shard: None,
            part: Part::Manifest,
            chunk: None,
            rows: None,
            problem: problem.into(),
        }
    }

    pub(crate) fn shard(shard: u32, part: Part, problem: impl Into<String>) -> Self {
        Self {
            shard: Some(shard),
            part,
            chunk: None,
            rows: None,
            problem: problem.into(),
        }
    }

    pub(crate) fn place(&self) -> impl Ord + use<> {
        let start = self.rows.as_ref().map(|rows| rows.start);
        (self.shard, self.chunk, start, self.part)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard {
            Some(shard) => write!(f, "shard {shard} {}", self.part)?,
            None => write!(f, "{}", self.part)?,
        }
        if let Some(chunk) = self.chunk {
            write!(f, " chunk {chunk}")?;
        }
        if let Some(rows) = &self.rows {
            write!(f, " rows {}:{}", rows.start, rows.end)?;
        }
        write!(f, " ({})", self.problem)
    }
}

fn places(count: usize) -> String {
    match count {
        1 => "1 place".to_owned(),
        count => format!("{count} places"),
    }
}

/// The first places, and how many more there are.
fn list(damage: &[Damage]) -> String {
    let listed = damage.iter().take(LISTED).map(Damage::to_string);
    let mut places: Vec<String> = listed.collect();
    if damage.len() > LISTED {
        places.push(format!("and {} more", damage.len() - LISTED));
    }
    places.join("; ")
}
