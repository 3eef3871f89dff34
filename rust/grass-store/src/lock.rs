//! Who may write a store: locks that the operating system drops when their holder dies.
//!
//! `.lock` is held by a writer alone, or shared by the writers of a group, each of which holds a
//! lock of its own number too, signed with the size of the group. `.manifest.lock` is held for the
//! moments in which the manifest is read, changed and replaced.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::paths;

/// Between two tries.
const MANIFEST_POLL: Duration = Duration::from_millis(2);

/// A held lock.
#[derive(Debug)]
struct FileLock {
    file: File,
    process: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Alone,
    Shared,
}

impl FileLock {
    /// Takes the lock, unless another holds it.
    fn try_take(disk: &dyn Disk, path: &Path, kind: Kind) -> Result<Option<Self>> {
        let file = disk.open_lock(path).map_err(Error::io("open", path))?;
        let taken = match kind {
            Kind::Alone => file.try_lock(),
            Kind::Shared => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(Some(Self {
                file,
                process: std::process::id(),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
        }
    }

    /// Takes the lock alone and writes the number of this process into the file, and how many
    /// writers its group has, unless another holds the lock.
    fn try_sign(disk: &dyn Disk, path: &Path, writers: u32) -> Result<Option<Self>> {
        let Some(mut lock) = Self::try_take(disk, path, Kind::Alone)? else {
            return Ok(None);
        };
        let process = lock.process;
        lock.file
            .set_len(0)
            .and_then(|()| writeln!(lock.file, "{process} {writers}"))
            .map_err(Error::io("write", path))?;
        Ok(Some(lock))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // A forked child only closes its copy: its parent still holds the lock.
        if std::process::id() == self.process {
            // The number left behind would be of a process that is gone, but it does no harm, so a
            // failure to erase it is no failure of the store. Unlocking, and not only closing: a
            // child that was forked meanwhile has the file open too.
            let _ = self.file.set_len(0);
            let _ = self.file.unlock();
        }
    }
}

/// The right to write a store, or the shards of one writer of a group.
#[derive(Debug)]
pub(crate) struct WriterLock {
    /// Let go first, so that whoever finds the store free finds this number free.
    _own: Option<FileLock>,
    _store: FileLock,
}

impl WriterLock {
    /// Takes the lock of writer `writer` of `writers`. The manifest's lock is held.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process, [`Error::Io`].
    pub(crate) fn take(disk: &dyn Disk, folder: &Path, writer: u32, writers: u32) -> Result<Self> {
        let path = paths::lock(folder);
        if writers == 1 {
            return match FileLock::try_sign(disk, &path, 1)? {
                Some(store) => Ok(Self {
                    _own: None,
                    _store: store,
                }),
                None => Err(written(folder, holder_of_store(disk, folder))),
            };
        }
        let Some(store) = FileLock::try_take(disk, &path, Kind::Shared)? else {
            return Err(written(folder, holder_of_store(disk, folder)));
        };
        // Not told by the manifest, which a group changes at its first rows in a finished store.
        let strangers = |signed: Signature| signed.writers != Some(writers);
        if let Some(stranger) = held_by_writer(disk, folder, strangers) {
            return Err(written(folder, Some(stranger)));
        }
        // What a killed writer that was alone has left.
        store.file.set_len(0).map_err(Error::io("write", &path))?;
        let own = paths::writer_lock(folder, writer);
        match FileLock::try_sign(disk, &own, writers)? {
            Some(own) => Ok(Self {
                _own: Some(own),
                _store: store,
            }),
            None => Err(written(folder, signed_by(&own))),
        }
    }
}

/// The right to change the manifest.
#[derive(Debug)]
pub(crate) struct ManifestLock {
    _lock: FileLock,
}

impl ManifestLock {
    /// Takes the lock, after waiting for others as long as the disk says.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process, [`Error::Io`].
    pub(crate) fn take(disk: &dyn Disk, folder: &Path) -> Result<Self> {
        let path = paths::manifest_lock(folder);
        let begun = Instant::now();
        loop {
            if let Some(lock) = FileLock::try_sign(disk, &path, 1)? {
                return Ok(Self { _lock: lock });
            }
            if begun.elapsed() >= disk.lock_wait() {
                let hint = "nothing is lost; make the same call again when that is done (a merge \
                            or a repair keeps the manifest to its end)";
                return Err(locked(folder, "changed", signed_by(&path), hint));
            }
            thread::sleep(MANIFEST_POLL);
        }
    }
}

fn written(folder: &Path, holder: Option<Signature>) -> Error {
    let hint = "wait for it, or end it, and try again";
    locked(folder, "written", holder, hint)
}

fn locked(
    folder: &Path,
    action: &'static str,
    holder: Option<Signature>,
    hint: &'static str,
) -> Error {
    Error::Locked {
        path: folder.to_path_buf(),
        action,
        holder: match holder {
            Some(Signature { process, .. }) => format!("process {process}"),
            None => "another process".to_owned(),
        },
        hint,
    }
}

/// What the holder of a lock has written into its file.
#[derive(Clone, Copy)]
struct Signature {
    process: u32,
    /// How many writers its group has.
    writers: Option<u32>,
}

/// The signature in a lock file, which a killed holder leaves there; none if it cannot be read.
fn signed_by(path: &Path) -> Option<Signature> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    Some(Signature {
        process: words.next()?.parse().ok()?,
        writers: words.next().and_then(|writers| writers.parse().ok()),
    })
}

/// The writer that holds the store alone, or one of a group. It only helps the message.
fn holder_of_store(disk: &dyn Disk, folder: &Path) -> Option<Signature> {
    signed_by(&paths::lock(folder)).or_else(|| held_by_writer(disk, folder, |_| true))
}

/// A writer of a group that holds the lock of its number, of those that `wanted` picks.
fn held_by_writer(
    disk: &dyn Disk,
    folder: &Path,
    wanted: impl Fn(Signature) -> bool,
) -> Option<Signature> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok());
    let locks = entries.filter(|entry| paths::is_writer_lock(&entry.file_name()));
    let signed = locks.filter_map(|entry| Some((signed_by(&entry.path())?, entry.path())));
    let mut held = signed.filter(|(signature, path)| {
        let taken = || FileLock::try_take(disk, path, Kind::Shared);
        wanted(*signature) && taken().is_ok_and(|lock| lock.is_none())
    });
    held.next().map(|(signature, _)| signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;

    fn holder<T: std::fmt::Debug>(outcome: Result<T>) -> String {
        match outcome {
            Err(Error::Locked { holder, .. }) => holder,
            other => panic!("expected a lock, got {other:?}"),
        }
    }

    #[test]
    fn writers_of_one_group_hold_the_store_together_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let take = |writer, writers| WriterLock::take(&SystemDisk, folder.path(), writer, writers);
        let this = format!("process {}", std::process::id());
        let (first, second) = (take(0, 3).unwrap(), take(2, 3).unwrap());
        assert_eq!(holder(take(2, 3)), this);
        assert_eq!(holder(take(0, 1)), this);
        assert_eq!(holder(take(1, 2)), this);
        drop(first);
        assert_eq!(holder(take(0, 1)), this);
        drop(second);
        let alone = take(0, 1).unwrap();
        assert_eq!(holder(take(0, 1)), this);
        assert_eq!(holder(take(1, 3)), this);
        drop(alone);
        // What a killed holder leaves is no lock, and its number is nobody's.
        fs::write(paths::lock(folder.path()), "4000000000\n").unwrap();
        let _group = take(1, 3).unwrap();
        assert_eq!(holder(take(0, 1)), this);
    }
}
