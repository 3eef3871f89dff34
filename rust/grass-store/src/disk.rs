//! What a writer asks of the file system, one call a method, so that tests can record, fail, cut short and replay each.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::Duration;

/// How long a call waits for others to change the manifest, which takes them a few disk syncs.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A file system to write a store on.
pub trait Disk: Debug + Send + Sync {
    /// Makes a folder.
    ///
    /// # Errors
    /// What the system answers.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes an empty file, in place of any that is there.
    ///
    /// # Errors
    /// What the system answers.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// What the system answers.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of any file of that name.
    ///
    /// # Errors
    /// What the system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system answers.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the system answers.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Opens the file of a lock, and makes it where there is none: no part of the store.
    ///
    /// # Errors
    /// What the system answers.
    fn open_lock(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path)
    }

    /// How long a call waits for the lock of the manifest while another holds it.
    fn lock_wait(&self) -> Duration {
        LOCK_WAIT
    }
}

/// A file that is open for writing.
pub trait DiskFile: Debug + Send + Sync {
    /// Writes the first of some bytes at an offset, and says how many.
    ///
    /// # Errors
    /// What the system answers.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file, or fills it up with zeros.
    ///
    /// # Errors
    /// What the system answers.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes the bytes and the length of the file durable.
    ///
    /// # Errors
    /// What the system answers.
    fn sync(&self) -> io::Result<()>;

    /// Lets written bytes begin their way to the disk, so that the next sync has less to wait for. It promises nothing,
    /// and what goes wrong is for that sync to tell.
    fn begin_sync(&self, _offset: u64, _length: u64) {}
}

impl dyn DiskFile + '_ {
    /// Writes all of some bytes at an offset, in as many calls as it takes.
    ///
    /// # Errors
    /// What the system answers; [`io::ErrorKind::WriteZero`] where it takes no more bytes and says nothing.
    pub fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Refuses to read what has a file's name and is none: a pipe or a device may keep its reader for ever.
///
/// # Errors
/// What the system answers, or what there is instead.
pub(crate) fn check_is_file(path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    let (error, found) = match (kind.is_file(), kind.is_dir()) {
        (true, _) => return Ok(()),
        (_, true) => (io::ErrorKind::IsADirectory, "a folder"),
        _ => (io::ErrorKind::NotSeekable, "a pipe or a device"),
    };
    Err(io::Error::new(error, format!("it is {found}, not a file")))
}

/// Refuses to write to a pipe, which may keep its writer for ever; anything else says itself that it is no file.
fn refuse_pipe(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_fifo() => {
            let error = io::ErrorKind::NotSeekable;
            Err(io::Error::new(error, "it is a pipe, not a file"))
        }
        _ => Ok(()),
    }
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        refuse_pipe(path)?;
        Ok(Box::new(File::create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        refuse_pipe(path)?;
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl DiskFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        // Also makes a changed length durable; times of access are all that it leaves out.
        self.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn begin_sync(&self, offset: u64, length: u64) {
        use std::os::fd::AsRawFd;

        let (offset, length) = (offset.cast_signed(), length.cast_signed());
        #[expect(unsafe_code, reason = "a call of the system that no safe library has")]
        // SAFETY: it takes numbers alone, and a file that is open. Without its flags for waiting it takes no note of
        // errors, so that the next sync still learns of them.
        unsafe {
            libc::sync_file_range(
                self.as_raw_fd(),
                offset,
                length,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }
}
