//! Names of a store's files, and how one is replaced so that a crash leaves the old or the new.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Part, Result};

pub(crate) fn manifest(store: &Path) -> PathBuf {
    store.join("manifest.json")
}

pub(crate) fn lock(store: &Path) -> PathBuf {
    store.join(".lock")
}

/// The files of one shard.
#[derive(Debug, Clone)]
pub(crate) struct ShardPaths {
    pub(crate) rows: PathBuf,
    pub(crate) ids: PathBuf,
    pub(crate) log: PathBuf,
}

impl ShardPaths {
    pub(crate) fn new(store: &Path, number: u32) -> Self {
        let file = |kind| store.join(format!("shard-{number:05}.{kind}"));
        Self {
            rows: file("rows"),
            ids: file("ids"),
            log: file("log"),
        }
    }

    /// The file that holds a part; the manifest is not of a shard.
    pub(crate) fn of(&self, part: Part) -> &Path {
        match part {
            Part::Ids => &self.ids,
            Part::Log => &self.log,
            Part::Rows | Part::Header | Part::Manifest => &self.rows,
        }
    }
}

/// Where [`replace`] writes before it renames.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".tmp");
    PathBuf::from(name)
}

/// Replaces a file by these bytes: sibling file, sync, rename, sync of the folder.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(Error::io("write", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Removes what a crash in [`replace`] may have left.
pub(crate) fn remove_temporary(path: &Path) -> Result<()> {
    let temporary = temporary(path);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &temporary)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", folder))
}
