//! `repair.json`: what a repair has decided, so that one that is interrupted ends the same way.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::manifest::{self, CHECKSUM_KEY, Manifest, with_checksum};
use crate::paths;
use crate::repair::Repaired;

/// A decided repair. Every new file is there and durable before the journal is.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(crate) repaired: Repaired,
    /// The text of the new manifest.
    pub(crate) manifest: String,
    /// Names of files whose place their repaired ones take.
    pub(crate) replaced: Vec<String>,
    /// Names of files that go.
    pub(crate) removed: Vec<String>,
}

impl Journal {
    pub(crate) fn write(&self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        let path = paths::repair_journal(folder);
        let value = serde_json::to_value(self)
            .map_err(|error| Error::io("write", &path)(io::Error::from(error)))?;
        paths::replace(disk, &path, &with_checksum(value))
    }

    /// The journal of an interrupted repair; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Repair`] if it is damaged, [`Error::Format`] if its manifest has another format,
    /// [`Error::Io`].
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = paths::repair_journal(folder);
        let Some(bytes) = paths::read_file(&path)? else {
            return Ok(None);
        };
        match parse(&bytes, folder) {
            Some(journal) => Ok(Some(journal)),
            None => Err(other_format(&bytes, folder).unwrap_or_else(|| Error::Repair {
                path: folder.to_path_buf(),
                problem: "a repair was interrupted, and its journal repair.json is damaged"
                    .to_owned(),
                hint: "restore the store from a copy; or remove repair.json and run grass-rs repair, \
                       which drops the shards whose files were replaced already"
                    .to_owned(),
            })),
        }
    }

    /// Does what was decided, as far as it is not done yet, and removes the journal.
    pub(crate) fn roll_forward(self, disk: &dyn Disk, folder: &Path) -> Result<Repaired> {
        for name in &self.replaced {
            let path = folder.join(name);
            match disk.rename(&paths::repaired(&path), &path) {
                // It was renamed before the interruption.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome.map_err(Error::io("write", &path))?,
            }
        }
        for name in &self.removed {
            paths::remove_if_there(disk, &folder.join(name))?;
        }
        // Replacing the manifest makes the names above durable, too.
        let manifest = self.manifest.as_bytes();
        paths::replace(disk, &paths::manifest(folder), manifest)?;
        paths::replace(disk, &paths::manifest_copy(folder), manifest)?;
        paths::remove_if_there(disk, &paths::repair_journal(folder))?;
        paths::sync_folder(disk, folder)?;
        Ok(self.repaired)
    }
}

/// The journal in these bytes, if it is one to the last byte and touches nothing but a store's files.
pub(crate) fn parse(bytes: &[u8], folder: &Path) -> Option<Journal> {
    let journal: Journal = serde_json::from_value(without_checksum(bytes)?).ok()?;
    let mut names = journal.replaced.iter().chain(&journal.removed);
    let ours = names.all(|name| paths::shard_number(name).is_some());
    let manifest: Result<Manifest> = manifest::parse(journal.manifest.as_bytes(), folder);
    (ours && manifest.is_ok()).then_some(journal)
}

/// The JSON object in these bytes without its checksum, if they are its canonical line with it.
pub(crate) fn without_checksum(bytes: &[u8]) -> Option<Value> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    value.as_object_mut()?.remove(CHECKSUM_KEY);
    (with_checksum(value.clone()) == bytes).then_some(value)
}

/// The error for the whole journal of a version whose stores have another format.
fn other_format(bytes: &[u8], folder: &Path) -> Option<Error> {
    let value = without_checksum(bytes)?;
    let outcome = manifest::parse(value.get("manifest")?.as_str()?.as_bytes(), folder);
    outcome
        .err()
        .filter(|error| matches!(error, Error::Format { .. }))
}
