//! Names of a store's files, where a store may be made, and how a file is replaced so that a crash
//! leaves the old or the new.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::disk::{Disk, check_is_file};
use crate::error::{Error, Part, Result};

pub(crate) fn manifest(store: &Path) -> PathBuf {
    store.join("manifest.json")
}

/// The copy of the manifest, from which a store without one is repaired.
pub(crate) fn manifest_copy(store: &Path) -> PathBuf {
    store.join("manifest.copy.json")
}

/// What a repair has decided, while it is being carried out.
pub(crate) fn repair_journal(store: &Path) -> PathBuf {
    store.join("repair.json")
}

pub(crate) fn lock(store: &Path) -> PathBuf {
    store.join(".lock")
}

pub(crate) fn manifest_lock(store: &Path) -> PathBuf {
    store.join(".manifest.lock")
}

pub(crate) fn writer_lock(store: &Path, writer: u32) -> PathBuf {
    store.join(format!(".writer-{writer:05}.lock"))
}

pub(crate) fn is_writer_lock(name: &OsStr) -> bool {
    let digits = name
        .to_str()
        .and_then(|name| name.strip_prefix(".writer-")?.strip_suffix(".lock"));
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a file only keeps writers from one another. It is no part of the store.
fn is_lock(name: &OsStr) -> bool {
    name == ".lock" || name == ".manifest.lock" || is_writer_lock(name)
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

    /// Refuses anything else of these names: what is no file can be neither read nor replaced.
    pub(crate) fn check_are_files(&self) -> Result<()> {
        for path in [&self.rows, &self.ids, &self.log] {
            match check_is_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("open", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Where [`replace`] writes before it renames.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, TEMPORARY)
}

/// Where a repair writes what is to take the place of a shard's file.
pub(crate) fn repaired(path: &Path) -> PathBuf {
    with_suffix(path, REPAIRED)
}

const TEMPORARY: &str = ".tmp";
const REPAIRED: &str = ".repair";

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens a file to read it; `None` if it is missing.
///
/// # Errors
/// [`Error::Io`], also if there is something else of that name.
pub(crate) fn open_file(path: &Path) -> Result<Option<File>> {
    match check_is_file(path).and_then(|()| File::open(path)) {
        Ok(file) => Ok(Some(file)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(Error::io("open", path)(error)),
        },
    }
}

/// All bytes of a file; `None` if it is missing.
///
/// # Errors
/// As [`open_file`].
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(mut file) = open_file(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    Ok(Some(bytes))
}

/// Replaces a file by these bytes: sibling file, sync, rename, sync of the folder.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let write = || {
        let file = disk.create(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&temporary, path)
    };
    write().map_err(Error::io("write", path))?;
    sync_folder(disk, path.parent().unwrap_or(Path::new(".")))
}

/// Removes what a crash in [`replace`] may have left.
pub(crate) fn remove_temporary(disk: &dyn Disk, path: &Path) -> Result<()> {
    remove_if_there(disk, &temporary(path))
}

/// Removes a file, unless it is gone already.
pub(crate) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the store's folder, its name durable; an existing folder is fine.
pub(crate) fn make_folder(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.create_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !path.is_dir() {
                return Err(Error::Exists {
                    path: path.to_path_buf(),
                    found: "a file",
                    hint: "choose another path",
                });
            }
        }
        outcome => outcome.map_err(Error::io("create", path))?,
    }
    // An existing folder too: a writer killed here may have left its name in memory alone.
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    sync_folder(disk, parent.unwrap_or(Path::new(".")))
}

/// Refuses a folder with anything in it but what a crash before the first manifest left, and what
/// `left` knows by its name.
pub(crate) fn refuse_foreign_files(path: &Path, left: impl Fn(&OsStr) -> bool) -> Result<()> {
    let mut foreign = false;
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let name = entry.map_err(Error::io("read", path))?.file_name();
        foreign |= !(is_lock(&name) || name == "manifest.json.tmp" || left(&name));
    }
    // Asked last: other writers may have made the store while the names were read.
    let (found, hint) = match manifest(path).exists() {
        true => (
            "a store",
            "open it with resume to go on with it, or choose another path",
        ),
        false if foreign => ("a folder that is not empty", "choose another path"),
        false => return Ok(()),
    };
    Err(Error::Exists {
        path: path.to_path_buf(),
        found,
        hint,
    })
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(disk: &dyn Disk, folder: &Path) -> Result<()> {
    disk.sync_folder(folder).map_err(Error::io("sync", folder))
}

/// The numbers of the shards of which a folder holds any file, ascending.
pub(crate) fn shard_numbers(store: &Path) -> Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(store).map_err(Error::io("read", store))? {
        let name = entry.map_err(Error::io("read", store))?.file_name();
        numbers.extend(name.to_str().and_then(shard_number));
    }
    Ok(numbers)
}

/// What crashes of writers and of repairs may have left in a folder, in the order of names.
pub(crate) fn leftovers(store: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(store).map_err(Error::io("read", store))? {
        let path = entry.map_err(Error::io("read", store))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let suffixes = [TEMPORARY, REPAIRED];
        let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let ours = |stem: &str| {
            let whole = [manifest(store), manifest_copy(store), repair_journal(store)];
            shard_number(stem).is_some() || whole.contains(&store.join(stem))
        };
        if stem.is_some_and(ours) {
            found.insert(path);
        }
    }
    Ok(found)
}

/// The number of the shard that has a file of this name.
pub(crate) fn shard_number(name: &str) -> Option<u32> {
    let (number, kind) = name.strip_prefix("shard-")?.split_once('.')?;
    let digits = number.len() == 5 && number.bytes().all(|byte| byte.is_ascii_digit());
    (digits && ["rows", "ids", "log"].contains(&kind)).then(|| number.parse().ok())?
}
