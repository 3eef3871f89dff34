//! A file of a shard as a reader keeps it: opened when it is read, and known again when it is opened again.
//!
//! A process may have so many files open, often 1024, and a store may have more. So only the last few that were opened
//! stay open, of all stores of the process together.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwapOption;

use crate::error::{Error, Result};
use crate::paths;

/// The most files that stay open. A reader goes from shard to shard, so a few a thread are enough.
const MOST_OPEN: usize = 64;

/// A file while it is open. Threads look at it without waiting for one another.
type Slot = ArcSwapOption<File>;

/// The slots that may hold a file, those filled first at the front.
static OPEN: Mutex<VecDeque<Weak<Slot>>> = Mutex::new(VecDeque::new());

pub(crate) const MISSING: &str = "the file is missing";
const REPLACED: &str = "another file has taken its place since the store was opened: open it again";

/// Whether a file is the one that was found before. Its birth tells it from one that got the number of a removed file;
/// where a file system keeps no births, the number must do.
fn same(found: &Metadata, before: &Metadata) -> bool {
    let numbers = |found: &Metadata| (found.dev(), found.ino());
    numbers(found) == numbers(before) && found.created().ok() == before.created().ok()
}

/// A file that was there when its store was opened.
#[derive(Debug)]
pub(crate) struct StoredFile {
    /// Absolute: the process may go to another folder.
    path: PathBuf,
    found: Metadata,
    slot: Arc<Slot>,
}

impl StoredFile {
    /// Opens a file, which stays open for the reads to come; `None` if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Option<(Self, Arc<File>)>> {
        let path = path::absolute(path).map_err(Error::io("open", path))?;
        let Some(file) = paths::open_file(&path)? else {
            return Ok(None);
        };
        let found = file.metadata().map_err(Error::io("read", &path))?;
        let stored = Self {
            path,
            found,
            slot: Arc::default(),
        };
        let file = Arc::new(file);
        stored.keep(&file);
        Ok(Some((stored, file)))
    }

    /// The same file, open, or what became of it.
    pub(crate) fn get(&self) -> Result<std::result::Result<Arc<File>, &'static str>> {
        if let Some(file) = self.slot.load_full() {
            return Ok(Ok(file));
        }
        let Some(file) = paths::open_file(&self.path)? else {
            return Ok(Err(MISSING));
        };
        let found = file.metadata().map_err(Error::io("read", &self.path))?;
        if !same(&found, &self.found) {
            return Ok(Err(REPLACED));
        }
        let file = Arc::new(file);
        self.keep(&file);
        Ok(Ok(file))
    }

    /// Leaves the file open for the next read. Where another thread has the list, also one that a fork left behind,
    /// it is not waited for: the file is then opened again.
    fn keep(&self, file: &Arc<File>) {
        let Ok(mut open) = OPEN.try_lock() else {
            return;
        };
        if self.slot.load().is_some() {
            return;
        }
        open.retain(|slot| slot.strong_count() > 0);
        while open.len() >= MOST_OPEN {
            if let Some(slot) = open.pop_front().and_then(|slot| slot.upgrade()) {
                slot.store(None);
            }
        }
        self.slot.store(Some(Arc::clone(file)));
        open.push_back(Arc::downgrade(&self.slot));
    }
}
