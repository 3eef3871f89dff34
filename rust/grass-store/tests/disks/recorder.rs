//! A disk that writes through to another, and records what it did in the order in which it did it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use grass_store::{Disk, DiskFile};

/// What the owner of a store knows at some moment, and so may count on from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The store has been made.
    pub exists: bool,
    /// Rows for which a commit returned.
    pub rows: u64,
    /// Rows that the writer was given.
    pub given: u64,
    /// The writer has finished, and was given nothing since.
    pub complete: bool,
}

/// A file by its own number, which no rename changes.
pub type FileNumber = usize;

#[derive(Clone)]
pub enum Event {
    /// A folder that was there when recording began.
    FoundFolder(PathBuf),
    /// A file that was there, durable, when recording began.
    Found(PathBuf, FileNumber, Arc<Vec<u8>>),
    CreateFolder(PathBuf),
    /// A new file, or a known one cut to nothing.
    Create(PathBuf, FileNumber),
    Open(PathBuf, FileNumber),
    Write(FileNumber, u64, Arc<[u8]>),
    SetLength(FileNumber, u64),
    Sync(FileNumber),
    /// The system could not sync: what was written may never reach the disk, whatever comes later.
    SyncFailed(FileNumber),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncFolder(PathBuf),
    Told(Told),
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FoundFolder(path) => write!(f, "found folder {}", path.display()),
            Self::Found(path, file, _) => write!(f, "found {} as file {file}", path.display()),
            Self::CreateFolder(path) => write!(f, "create folder {}", path.display()),
            Self::Create(path, file) => write!(f, "create {} as file {file}", path.display()),
            Self::Open(path, file) => write!(f, "open {} as file {file}", path.display()),
            Self::Write(file, offset, bytes) => {
                write!(f, "write {} bytes at {offset} of file {file}", bytes.len())
            }
            Self::SetLength(file, length) => write!(f, "set length of file {file} to {length}"),
            Self::Sync(file) => write!(f, "sync file {file}"),
            Self::SyncFailed(file) => write!(f, "fail to sync file {file}"),
            Self::Rename(from, to) => write!(f, "rename {} to {}", from.display(), to.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::SyncFolder(path) => write!(f, "sync folder {}", path.display()),
            Self::Told(told) => told.fmt(f),
        }
    }
}

#[derive(Debug, Default)]
struct Record {
    events: Vec<Event>,
    names: BTreeMap<PathBuf, FileNumber>,
    files: FileNumber,
}

impl Record {
    fn new_file(&mut self, path: &Path) -> FileNumber {
        self.files += 1;
        self.names.insert(path.to_path_buf(), self.files - 1);
        self.files - 1
    }
}

#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<dyn Disk>,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    /// Records what happens in a folder, beginning with what is in it.
    pub fn new(inner: Arc<dyn Disk>, root: &Path) -> Self {
        let mut record = Record::default();
        find(root, &mut record);
        Self {
            inner,
            record: Arc::new(Mutex::new(record)),
        }
    }

    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    pub fn told(&self, told: Told) {
        self.record.lock().unwrap().events.push(Event::Told(told));
    }

    pub fn events(&self) -> Vec<Event> {
        self.record.lock().unwrap().events.clone()
    }

    fn file(&self, inner: Box<dyn DiskFile>, number: FileNumber) -> Box<dyn DiskFile> {
        Box::new(RecordedFile {
            inner,
            number,
            record: Arc::clone(&self.record),
        })
    }
}

fn find(folder: &Path, record: &mut Record) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            record.events.push(Event::FoundFolder(path.clone()));
            find(&path, record);
        } else {
            let number = record.new_file(&path);
            let bytes = Arc::new(fs::read(&path).unwrap());
            record.events.push(Event::Found(path, number, bytes));
        }
    }
}

impl Disk for Recorder {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        self.inner.create_folder(path)?;
        record.events.push(Event::CreateFolder(path.to_path_buf()));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut record = self.record.lock().unwrap();
        let inner = self.inner.create(path)?;
        let number = match record.names.get(path) {
            Some(&number) => number,
            None => record.new_file(path),
        };
        record
            .events
            .push(Event::Create(path.to_path_buf(), number));
        Ok(self.file(inner, number))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut record = self.record.lock().unwrap();
        let inner = self.inner.open(path)?;
        let number = record.names[path];
        record.events.push(Event::Open(path.to_path_buf(), number));
        Ok(self.file(inner, number))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        self.inner.rename(from, to)?;
        let number = record.names.remove(from).unwrap();
        record.names.insert(to.to_path_buf(), number);
        let event = Event::Rename(from.to_path_buf(), to.to_path_buf());
        record.events.push(event);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        self.inner.remove(path)?;
        record.names.remove(path).unwrap();
        record.events.push(Event::Remove(path.to_path_buf()));
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        self.inner.sync_folder(path)?;
        record.events.push(Event::SyncFolder(path.to_path_buf()));
        Ok(())
    }
}

#[derive(Debug)]
struct RecordedFile {
    inner: Box<dyn DiskFile>,
    number: FileNumber,
    record: Arc<Mutex<Record>>,
}

impl DiskFile for RecordedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut record = self.record.lock().unwrap();
        let written = self.inner.write_at(bytes, offset)?;
        let event = Event::Write(self.number, offset, bytes[..written].into());
        record.events.push(event);
        Ok(written)
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        self.inner.set_length(length)?;
        record.events.push(Event::SetLength(self.number, length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        let outcome = self.inner.sync();
        record.events.push(match outcome {
            Ok(()) => Event::Sync(self.number),
            Err(_) => Event::SyncFailed(self.number),
        });
        outcome
    }
}
