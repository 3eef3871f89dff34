//! The recorder sees every call that changes a store: the system's own trace of them is the same.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disks::faulty::{EIO, failing_once};
use disks::folder;
use disks::job::Job;
use disks::recorder::{Event, FileNumber, Recorder};
use grass_store::{Dtype, SystemDisk};

/// Where the traced process makes its store and leaves its record.
const PLACE: &str = "GRASS_TEST_TRACED_PLACE";

/// The process that is traced: only a part of the test below. It writes a store that is interrupted
/// now and then, so that there is something to cut off and to remove.
#[test]
fn writes_while_it_is_traced() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else {
        return;
    };
    let root = place.join("root");
    let recorder = Recorder::new(Arc::new(SystemDisk), &root);
    let job = Job::appends_to_finished(Dtype::Int8);
    let store = root.join("store");
    for number in [4, 31, 33, 40, 50] {
        let disk = failing_once(recorder.shared(), number, EIO);
        job.run(&store, disk.shared(), &mut |_| ()).unwrap_err();
    }
    job.run(&store, recorder.shared(), &mut |_| ()).unwrap();
    fs::write(
        place.join("record"),
        in_words(&recorder.events(), &root).join("\n"),
    )
    .unwrap();
}

/// What changed in the folder, a call a line.
fn in_words(events: &[Event], root: &Path) -> Vec<String> {
    let mut names: BTreeMap<FileNumber, PathBuf> = BTreeMap::new();
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    let mut words = Vec::new();
    for event in events {
        words.push(match event {
            Event::CreateFolder(path) => format!("mkdir {}", name(path)),
            Event::Create(path, file) => {
                names.insert(*file, path.clone());
                format!("create {}", name(path))
            }
            Event::Write(file, offset, bytes) => {
                format!("write {} {} {offset}", name(&names[file]), bytes.len())
            }
            Event::SetLength(file, length) => format!("cut {} {length}", name(&names[file])),
            Event::Sync(file) => format!("sync {}", name(&names[file])),
            Event::Rename(from, to) => {
                let (_, path) = names.iter_mut().find(|(_, path)| *path == from).unwrap();
                path.clone_from(to);
                format!("rename {} {}", name(from), name(to))
            }
            Event::Remove(path) => format!("unlink {}", name(path)),
            Event::SyncFolder(path) => format!("sync {}", name(path)),
            Event::Open(..) | Event::Told(_) => continue,
            other => panic!("{other:?} in a new folder"),
        });
    }
    words
}

/// Calls that change nothing.
const READING: [&str; 16] = [
    "access",
    "close",
    "fcntl",
    "flock",
    "fstat",
    "getdents64",
    "ioctl",
    "lseek",
    "lstat",
    "mmap",
    "newfstatat",
    "pread64",
    "read",
    "readlink",
    "stat",
    "statx",
];

/// The calls of a trace that changed the folder, in the words of the record; those unknown here as
/// they are.
fn traced(trace: &str, root: &Path) -> Vec<String> {
    let root = root.to_str().unwrap();
    let succeeded = |line: &&str| line.contains(root) && !line.contains(" = -1 ");
    trace
        .lines()
        .filter(succeeded)
        .filter_map(|line| call(line, root))
        .collect()
}

fn call(line: &str, root: &str) -> Option<String> {
    // "1234  pwrite64(3</path>, ""..., 20, 0) = 20"
    let line = line
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .trim_start();
    let (kind, rest) = line.split_once('(')?;
    let (arguments, outcome) = rest.rsplit_once(" = ")?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let paths: Vec<&str> = arguments
        .split(['"', '<', '>'])
        .filter_map(|part| part.strip_prefix(root))
        .map(|name| name.trim_start_matches('/'))
        .collect();
    let name = *paths.first()?;
    if name.rsplit('/').next()?.starts_with('.') {
        // The lock, which is no part of the store.
        return None;
    }
    let last = |count: usize| arguments.rsplit(", ").nth(count).unwrap();
    Some(match kind {
        "mkdir" => format!("mkdir {name}"),
        "openat" if arguments.contains("O_TRUNC") => format!("create {name}"),
        "openat" if !arguments.contains("O_CREAT") => return None,
        "pwrite64" => format!("write {name} {} {}", outcome, last(0)),
        "ftruncate" => format!("cut {name} {}", last(0)),
        "fsync" | "fdatasync" => format!("sync {name}"),
        "rename" => format!("rename {name} {}", paths[1]),
        "unlink" => format!("unlink {name}"),
        "mmap" if arguments.contains("PROT_WRITE") => line.to_owned(),
        kind if READING.contains(&kind) => return None,
        _ => line.to_owned(),
    })
}

#[test]
fn the_system_traces_the_calls_that_the_recorder_sees() {
    let place = folder();
    let (root, trace) = (place.path().join("root"), place.path().join("trace"));
    fs::create_dir(&root).unwrap();
    let strace = |trace: &Path, program: &Path| {
        let mut command = Command::new("strace");
        let options = ["-f", "-y", "-s", "0", "-e", "trace=%file,%desc", "-o"];
        command.args(options).arg(trace).arg(program);
        command
    };
    let tried = strace(&trace, Path::new("true")).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("the witness is skipped: strace is not to be had, or may not trace here");
        return;
    }
    let output = strace(&trace, &std::env::current_exe().unwrap())
        .args(["--exact", "writes_while_it_is_traced", "--nocapture"])
        .env(PLACE, place.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let record = fs::read_to_string(place.path().join("record")).unwrap();
    let record: Vec<&str> = record.lines().collect();
    for kind in [
        "mkdir", "create", "write", "cut", "sync", "rename", "unlink",
    ] {
        assert!(
            record.iter().any(|line| line.starts_with(kind)),
            "no {kind} was recorded"
        );
    }
    let traced = traced(&fs::read_to_string(trace).unwrap(), &root);
    assert_eq!(traced, record);
}
