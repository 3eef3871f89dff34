//! A call that is killed, or one of whose calls to the disk fails once, is made again on the same running system:
//! what that has in memory only, and takes for durable, never stands in for what is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use grass_store::{Disk, DiskFile, SystemDisk};

use super::{Case, Change, WIDTH};

/// The files of a folder, by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A file, with what is not durable of it.
#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    /// This call fails; a sync that does loses for good what it should have made durable.
    Once(usize),
    /// This call and all after it fail.
    From(usize),
    Never,
}

#[derive(Debug)]
struct Machine {
    files: Vec<File>,
    /// Names as the running system has them, and as the disk has.
    live: BTreeMap<PathBuf, usize>,
    names: BTreeMap<PathBuf, usize>,
    stop: Stop,
    calls: usize,
    /// Whether a call has returned that wrote all scores.
    finished: bool,
    /// What a power loss may leave, at any moment since this was emptied, and whether all was finished.
    states: BTreeSet<(Files, bool)>,
}

/// A running machine and its disk, on which a power loss may leave less than is in memory.
#[derive(Debug, Clone)]
struct Volatile(Arc<Mutex<Machine>>);

#[derive(Debug)]
struct VolatileFile {
    inner: Box<dyn DiskFile>,
    number: usize,
    machine: Volatile,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length as usize, 0),
            Self::Bytes(written, offset) => {
                let start = *offset as usize;
                bytes.resize(bytes.len().max(start + written.len()), 0);
                bytes[start..start + written.len()].copy_from_slice(written);
            }
        }
    }
}

impl Machine {
    fn create(&mut self, path: &Path) -> usize {
        self.files.push(File::default());
        self.live.insert(path.to_path_buf(), self.files.len() - 1);
        self.files.len() - 1
    }

    /// Each file's unsynced changes are on the disk or not, and so are the names.
    fn note_states(&mut self) {
        for names in [&self.live, &self.names] {
            for changed in [false, true] {
                let bytes = |number: &usize| {
                    let file = &self.files[*number];
                    let mut bytes = file.durable.clone();
                    let changes = file.changes.iter().filter(|_| changed);
                    changes.for_each(|change| change.apply(&mut bytes));
                    bytes
                };
                let files = names
                    .iter()
                    .map(|(path, number)| (path.clone(), bytes(number)));
                self.states.insert((files.collect(), self.finished));
            }
        }
    }
}

impl Volatile {
    /// A machine on which everything in the folder is durable.
    fn new(folder: &Path, stop: Stop) -> Self {
        let mut machine = Machine {
            files: Vec::new(),
            live: BTreeMap::new(),
            names: BTreeMap::new(),
            stop,
            calls: 0,
            finished: false,
            states: BTreeSet::new(),
        };
        for (path, bytes) in files(folder) {
            let number = machine.create(&path);
            machine.files[number].durable = bytes;
        }
        machine.names = machine.live.clone();
        Self(Arc::new(Mutex::new(machine)))
    }

    /// Makes a call, unless it is to fail, and lets it change the machine.
    fn call<T>(
        &self,
        run: impl FnOnce() -> io::Result<T>,
        change: impl FnOnce(&mut Machine, bool),
    ) -> io::Result<T> {
        let machine = &mut *self.0.lock().unwrap();
        let number = machine.calls;
        machine.calls += 1;
        let outcome = match machine.stop {
            Stop::Once(stop) if stop == number => Err(io::ErrorKind::Other.into()),
            Stop::From(stop) if stop <= number => Err(io::ErrorKind::Other.into()),
            _ => run(),
        };
        change(machine, outcome.is_ok());
        machine.note_states();
        outcome
    }

    fn file(&self, inner: Box<dyn DiskFile>, number: usize) -> Box<dyn DiskFile> {
        let machine = self.clone();
        Box::new(VolatileFile {
            inner,
            number,
            machine,
        })
    }

    fn opened(
        &self,
        path: &Path,
        empty: bool,
        open: impl FnOnce() -> io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Box<dyn DiskFile>> {
        let mut number = 0;
        let inner = self.call(open, |machine, done| {
            if done {
                let known = machine.live.get(path).copied();
                // A journal is made by its lock, without the disk.
                number = known.unwrap_or_else(|| machine.create(path));
                if empty {
                    machine.files[number].changes.push(Change::Length(0));
                }
            }
        })?;
        Ok(self.file(inner, number))
    }
}

impl Disk for Volatile {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        unreachable!("{} is made by nobody", path.display())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.opened(path, true, || SystemDisk.create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.opened(path, false, || SystemDisk.open(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let run = || SystemDisk.rename(from, to);
        self.call(run, |machine, done| {
            if done {
                let number = machine.live.remove(from).unwrap();
                machine.live.insert(to.to_path_buf(), number);
            }
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let run = || SystemDisk.remove(path);
        self.call(run, |machine, done| {
            if done {
                machine.live.remove(path);
            }
        })
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let sync = |machine: &mut Machine, done: bool| {
            if done {
                machine.names = machine.live.clone();
            }
        };
        self.call(|| Ok(()), sync)
    }
}

impl DiskFile for VolatileFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let run = || self.inner.write_at(bytes, offset);
        self.machine.call(run, |machine, done| {
            if done {
                let change = Change::Bytes(bytes.to_vec(), offset);
                machine.files[self.number].changes.push(change);
            }
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let run = || self.inner.set_length(length);
        self.machine.call(run, |machine, done| {
            if done {
                let change = Change::Length(length);
                machine.files[self.number].changes.push(change);
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        let sync = |machine: &mut Machine, done: bool| {
            let file = &mut machine.files[self.number];
            for change in file.changes.drain(..).filter(|_| done) {
                change.apply(&mut file.durable);
            }
        };
        self.machine.call(|| Ok(()), sync)
    }
}

fn files(folder: &Path) -> Files {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.is_file());
    files
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

fn put(folder: &Path, state: &Files) {
    for path in files(folder).keys() {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in state {
        fs::write(path, bytes).unwrap();
    }
}

/// Interrupts a call of the case at each of its calls to the disk, makes it again, and lets the power
/// fail at each moment after that: the next call ends with these scores, and what was finished is there.
fn survives(case: &Case, name: &str) {
    let expected = case.expected();
    let folder = case.folder.path();
    let before = files(folder);
    let mut states = BTreeSet::new();
    let mut interruptions = 0;
    for stop in [Stop::Once, Stop::From] {
        for number in 0.. {
            put(folder, &before);
            let machine = Volatile::new(folder, stop(number));
            let outcome = case.run(&machine);
            {
                let mut machine = machine.0.lock().unwrap();
                if machine.calls <= number {
                    outcome.unwrap();
                    break;
                }
                machine.stop = Stop::Never;
                machine.states.clear();
            }
            case.run(&machine).unwrap();
            let mut machine = machine.0.lock().unwrap();
            machine.finished = true;
            machine.note_states();
            states.append(&mut machine.states);
            interruptions += 1;
        }
    }
    for (state, finished) in &states {
        put(folder, state);
        let context = format!("{name}, {:?}, finished {finished}", state.keys());
        if *finished {
            case.assert_written(&expected, &context);
        }
        case.run(&Volatile::new(folder, Stop::Never)).unwrap();
        case.assert_finished(&expected, &context);
    }
    assert!(
        interruptions > 20 && states.len() > 20,
        "{interruptions} {}",
        states.len()
    );
}

#[test]
fn a_call_from_the_beginning() {
    survives(&Case::new(), "from the beginning");
}

#[test]
fn a_call_that_goes_on() {
    let case = Case::new();
    case.stop_halfway();
    survives(&case, "goes on");
}

/// Its journal tells of more rows than a file holds that is begun anew.
#[test]
fn a_call_that_begins_anew() {
    let case = Case::new();
    case.stop_halfway();
    fs::remove_file(case.part()).unwrap();
    survives(&case, "begins anew");
}

#[test]
fn a_call_in_the_place_of_another_whose_file_was_deleted() {
    let mut case = Case::new();
    case.stop_halfway();
    fs::remove_file(case.part()).unwrap();
    case.queries[WIDTH] += 0.5;
    survives(&case, "in the place of another");
}
