//! Who may write a store: locks that the operating system drops when their holder dies.
//!
//! `.lock` is held by a writer alone, or shared by the writers of a group, each of which holds a
//! lock of its own number too. `.manifest.lock` is held for the moments in which the manifest is
//! read, changed and replaced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::paths;

/// How long a writer waits for others to change the manifest, which takes them a few disk syncs.
const MANIFEST_WAIT: Duration = Duration::from_secs(10);

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
    fn try_take(path: &Path, kind: Kind) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
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

    /// Takes the lock for this process alone and writes its number into the file, unless another
    /// process holds the lock.
    fn try_sign(path: &Path) -> Result<Option<Self>> {
        let Some(mut lock) = Self::try_take(path, Kind::Alone)? else {
            return Ok(None);
        };
        let process = lock.process;
        lock.file
            .set_len(0)
            .and_then(|()| writeln!(lock.file, "{process}"))
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
    /// Takes the lock of writer `writer` of `writers`. Where the store was last written by another
    /// number of writers, `regrouped`, nobody else may be writing it. The manifest's lock is held.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process, [`Error::Io`].
    pub(crate) fn take(folder: &Path, writer: u32, writers: u32, regrouped: bool) -> Result<Self> {
        let path = paths::lock(folder);
        if writers == 1 {
            return match FileLock::try_sign(&path)? {
                Some(store) => Ok(Self {
                    _own: None,
                    _store: store,
                }),
                None => Err(locked(folder, holder_of_store(folder))),
            };
        }
        if regrouped && FileLock::try_take(&path, Kind::Alone)?.is_none() {
            return Err(locked(folder, holder_of_store(folder)));
        }
        let Some(store) = FileLock::try_take(&path, Kind::Shared)? else {
            return Err(locked(folder, holder_of_store(folder)));
        };
        // What a killed writer that was alone has left.
        store.file.set_len(0).map_err(Error::io("write", &path))?;
        let own = paths::writer_lock(folder, writer);
        match FileLock::try_sign(&own)? {
            Some(own) => Ok(Self {
                _own: Some(own),
                _store: store,
            }),
            None => Err(locked(folder, signed_by(&own))),
        }
    }
}

/// The right to change the manifest.
#[derive(Debug)]
pub(crate) struct ManifestLock {
    _lock: FileLock,
}

impl ManifestLock {
    /// Takes the lock, after waiting for others for some seconds.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder's process, [`Error::Io`].
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        Self::take_within(folder, MANIFEST_WAIT)
    }

    fn take_within(folder: &Path, wait: Duration) -> Result<Self> {
        let path = paths::manifest_lock(folder);
        let begun = Instant::now();
        loop {
            if let Some(lock) = FileLock::try_sign(&path)? {
                return Ok(Self { _lock: lock });
            }
            if begun.elapsed() >= wait {
                return Err(locked(folder, signed_by(&path)));
            }
            thread::sleep(MANIFEST_POLL);
        }
    }
}

fn locked(folder: &Path, process: Option<u32>) -> Error {
    Error::Locked {
        path: folder.to_path_buf(),
        holder: match process {
            Some(process) => format!("process {process}"),
            None => "another process".to_owned(),
        },
    }
}

/// The number in a lock file. It only helps the message: an unreadable one must not hide the lock.
fn signed_by(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The writer that holds the store alone, or one of a group.
fn holder_of_store(folder: &Path) -> Option<u32> {
    signed_by(&paths::lock(folder)).or_else(|| {
        let entries = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok());
        let locks = entries.filter(|entry| paths::is_writer_lock(&entry.file_name()));
        let mut held = locks.filter(|entry| {
            FileLock::try_take(&entry.path(), Kind::Shared).is_ok_and(|lock| lock.is_none())
        });
        signed_by(&held.next()?.path())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder<T: std::fmt::Debug>(outcome: Result<T>) -> String {
        match outcome {
            Err(Error::Locked { holder, .. }) => holder,
            other => panic!("expected a lock, got {other:?}"),
        }
    }

    #[test]
    fn waiting_for_the_manifest_ends_with_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let held = ManifestLock::take(folder.path()).unwrap();
        let refused = ManifestLock::take_within(folder.path(), Duration::ZERO);
        assert_eq!(holder(refused), format!("process {}", std::process::id()));
        drop(held);
        ManifestLock::take_within(folder.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn writers_of_one_group_hold_the_store_together_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let take = |writer, writers, regrouped| {
            WriterLock::take(folder.path(), writer, writers, regrouped)
        };
        let this = format!("process {}", std::process::id());
        let (first, second) = (take(0, 3, true).unwrap(), take(2, 3, false).unwrap());
        assert_eq!(holder(take(2, 3, false)), this);
        assert_eq!(holder(take(0, 1, true)), this);
        assert_eq!(holder(take(1, 2, true)), this);
        drop(first);
        assert_eq!(holder(take(0, 1, true)), this);
        drop(second);
        let alone = take(0, 1, true).unwrap();
        assert_eq!(holder(take(0, 1, false)), this);
        assert_eq!(holder(take(1, 3, true)), this);
        drop(alone);
        // What a killed holder leaves is no lock, and its number is nobody's.
        fs::write(paths::lock(folder.path()), "4000000000\n").unwrap();
        let _group = take(1, 3, true).unwrap();
        assert_eq!(holder(take(0, 1, true)), this);
    }
}
