//! One writer a store: a lock that the operating system drops when its holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::paths;

/// The held lock of a store.
#[derive(Debug)]
pub(crate) struct WriterLock {
    file: File,
    process: u32,
}

impl WriterLock {
    /// Takes the lock of the store in `folder`, and writes this process's number into it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer has it, [`Error::Io`].
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let path = paths::lock(folder);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // The number only helps the message: an unreadable one must not hide the lock.
                let read = file.read_to_string(&mut process);
                let holder = match process.trim() {
                    number if read.is_ok() && number.parse::<u32>().is_ok() => {
                        format!("process {number}")
                    }
                    _ => "another process".to_owned(),
                };
                return Err(Error::Locked {
                    path: folder.to_path_buf(),
                    holder,
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let process = std::process::id();
        file.set_len(0)
            .and_then(|()| writeln!(file, "{process}"))
            .map_err(Error::io("write", &path))?;
        Ok(Self { file, process })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // A forked child only closes its copy: its parent still holds the lock.
        if std::process::id() == self.process {
            // Closing the file unlocks it. The number left behind would be of a process that is
            // gone, but it does no harm, so a failure to erase it is no failure of the store.
            let _ = self.file.set_len(0);
        }
    }
}
