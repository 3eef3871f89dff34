//! A disk that answers each call as a rule says.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use grass_store::{Disk, DiskFile, SystemDisk};

pub const EINTR: i32 = 4;
pub const EIO: i32 = 5;
pub const EFBIG: i32 = 27;
pub const ENOSPC: i32 = 28;
pub const EDQUOT: i32 = if cfg!(target_os = "linux") { 122 } else { 69 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    CreateFolder,
    Create,
    Open,
    Write,
    Length,
    SetLength,
    Sync,
    Rename,
    Remove,
    SyncFolder,
}

/// One call of the writer.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// How many calls came before it.
    pub number: usize,
    pub op: Op,
    /// The file or folder; the new name of a rename.
    pub path: &'a Path,
    /// How many bytes a write has.
    pub bytes: usize,
}

pub enum Answer {
    /// Passes the call on.
    Do,
    /// Fails with this number of the system, and does nothing.
    Fail(i32),
    /// Writes no more than this many bytes.
    Take(usize),
    /// Says that all is well, and does nothing.
    Pretend,
}

type Rule = dyn Fn(&Call<'_>) -> Answer + Send + Sync;

#[derive(Clone)]
pub struct FaultyDisk(Arc<Shared>);

struct Shared {
    inner: Arc<dyn Disk>,
    calls: AtomicUsize,
    rule: Box<Rule>,
}

impl FaultyDisk {
    pub fn new(
        inner: Arc<dyn Disk>,
        rule: impl Fn(&Call<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            inner,
            calls: AtomicUsize::new(0),
            rule: Box::new(rule),
        }))
    }

    /// How many calls came.
    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }
}

/// The system's disk without its syncs, for states that no power loss follows.
pub fn quick_disk() -> Arc<dyn Disk> {
    let rule = |call: &Call<'_>| match call.op {
        Op::Sync | Op::SyncFolder => Answer::Pretend,
        _ => Answer::Do,
    };
    FaultyDisk::new(Arc::new(SystemDisk), rule).shared()
}

/// A disk on which call `number` fails.
pub fn failing_once(inner: Arc<dyn Disk>, number: usize, errno: i32) -> FaultyDisk {
    FaultyDisk::new(inner, move |call| match call.number == number {
        true => Answer::Fail(errno),
        false => Answer::Do,
    })
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyDisk on {:?}", self.0.inner)
    }
}

impl Shared {
    /// Runs the call that the rule lets through; `taken` bytes of it where it is a write.
    fn answer<T>(
        &self,
        op: Op,
        path: &Path,
        bytes: usize,
        pretended: impl FnOnce() -> T,
        run: impl FnOnce(usize) -> io::Result<T>,
    ) -> io::Result<T> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            number,
            op,
            path,
            bytes,
        };
        match (self.rule)(&call) {
            Answer::Do => run(bytes),
            Answer::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            Answer::Take(most) => run(bytes.min(most)),
            Answer::Pretend => Ok(pretended()),
        }
    }

    fn step(&self, op: Op, path: &Path, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.answer(op, path, 0, || (), |_| run())
    }

    fn file(
        self: &Arc<Self>,
        op: Op,
        path: &Path,
        open: impl FnOnce() -> io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Box<dyn DiskFile>> {
        let unopened = || unreachable!("a file cannot be pretended");
        let inner = self.answer(op, path, 0, unopened, |_| open())?;
        Ok(Box::new(FaultyFile {
            inner,
            path: path.to_path_buf(),
            disk: Arc::clone(self),
        }))
    }
}

impl Disk for FaultyDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let run = || self.0.inner.create_folder(path);
        self.0.step(Op::CreateFolder, path, run)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.file(Op::Create, path, || self.0.inner.create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.file(Op::Open, path, || self.0.inner.open(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0
            .step(Op::Rename, to, || self.0.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.step(Op::Remove, path, || self.0.inner.remove(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let run = || self.0.inner.sync_folder(path);
        self.0.step(Op::SyncFolder, path, run)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn DiskFile>,
    path: PathBuf,
    disk: Arc<Shared>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let length = bytes.len();
        let run = |taken: usize| self.inner.write_at(&bytes[..taken], offset);
        self.disk
            .answer(Op::Write, &self.path, length, || length, run)
    }

    fn length(&self) -> io::Result<u64> {
        let unknown = || unreachable!("a length cannot be pretended");
        self.disk
            .answer(Op::Length, &self.path, 0, unknown, |_| self.inner.length())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let run = || self.inner.set_length(length);
        self.disk.step(Op::SetLength, &self.path, run)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(Op::Sync, &self.path, || self.inner.sync())
    }
}
