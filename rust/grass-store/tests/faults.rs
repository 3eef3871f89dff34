//! A disk that fails, fills up or writes short never costs a committed row, and the writer says what to do.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{NARROW, append, manual, spec};
use disks::faulty::{
    Answer, Call, EDQUOT, EFBIG, EINTR, EIO, ENOSPC, FaultyDisk, Op, failing_once, quick_disk,
};
use disks::job::{Expected, Job, judge};
use disks::recorder::Told;
use disks::{Tally, effort, folder};
use grass_core::parallel::Workers;
use grass_store::{Disk, Dtype, Error, StoreReader, StoreWriter, SystemDisk, WriterOptions};

/// Jobs that between them make every kind of call.
fn jobs() -> Vec<Expected> {
    let narrow = Job::narrow(Dtype::Float32, effort(4, 30));
    let jobs = [
        narrow,
        Job::appends_to_finished(Dtype::Int8),
        Job::commits_by_bytes(),
    ];
    jobs.map(Expected::of).into()
}

/// Runs the job on a disk, and returns what its owner knew at the end, and the end.
fn run(job: &Job, store: &Path, disk: Arc<dyn Disk>) -> (Told, Result<(), Error>) {
    let mut told = Told::default();
    let outcome = job.run(store, disk, &mut |now| told = now);
    (told, outcome)
}

/// The store must still hold what was committed, and be gone on with to the expected end.
fn holds_and_completes(expected: &Expected, store: &Path, told: Told) {
    judge(expected.read(store).unwrap(), told).unwrap();
    expected.complete(store).unwrap();
}

#[test]
fn any_call_that_fails_stops_the_writer_and_loses_nothing() {
    let tally = Tally::start("faults_any_call");
    let hints = [
        (ENOSPC, "free some space"),
        (EDQUOT, "free some space"),
        (EFBIG, "raise the file size limit"),
        (EIO, "check the disk"),
    ];
    let mut faults = 0;
    for expected in jobs() {
        let calls = FaultyDisk::new(quick_disk(), |_| Answer::Do);
        let place = folder();
        run(&expected.job, &place.path().join("store"), calls.shared())
            .1
            .unwrap();
        for (number, (errno, hint)) in
            (0..calls.calls()).flat_map(|number| hints.map(|fault| (number, fault)))
        {
            let place = folder();
            let store = place.path().join("store");
            let disk = failing_and_naming(number, errno);
            let (told, outcome) = run(&expected.job, &store, disk.0.shared());
            let error = outcome.expect_err("the fault was not noticed");
            let failed = disk.1.lock().unwrap().take().unwrap();
            let message = error.to_string();
            assert_eq!(error.errno(), Some(errno), "{message}");
            assert!(
                message.contains(&failed),
                "{message} does not name {failed}"
            );
            assert!(message.contains(hint), "{message}");
            if store.exists() {
                holds_and_completes(&expected, &store, told);
            }
            faults += 1;
        }
    }
    tally.report(&[("faults", faults)]);
}

/// A disk on which one call fails, and the name of the file that it was for. A file is named by what
/// it shall be called.
fn failing_and_naming(number: usize, errno: i32) -> (FaultyDisk, Arc<Mutex<Option<String>>>) {
    let failed = Arc::new(Mutex::new(None));
    let name = Arc::clone(&failed);
    let disk = FaultyDisk::new(quick_disk(), move |call| {
        if call.number != number {
            return Answer::Do;
        }
        let path = call.path.to_str().unwrap();
        *name.lock().unwrap() = Some(path.trim_end_matches(".tmp").to_owned());
        Answer::Fail(errno)
    });
    (disk, failed)
}

#[test]
fn any_call_of_a_resume_that_fails_loses_nothing() {
    let tally = Tally::start("faults_in_resume");
    let mut faults = 0;
    for expected in jobs() {
        for stop in (3..).step_by(effort(7, 1)) {
            let place = folder();
            let store = place.path().join("store");
            let disk = failing_once(quick_disk(), stop, EIO);
            let (told, outcome) = run(&expected.job, &store, disk.shared());
            if outcome.is_ok() {
                break;
            }
            let mut told = told;
            for number in 0.. {
                let disk = failing_once(quick_disk(), number, EIO);
                let (now, outcome) = run(&expected.job, &store, disk.shared());
                if now.exists {
                    told = now;
                }
                if outcome.is_ok() {
                    break;
                }
                judge(expected.read(&store).unwrap(), told).unwrap();
                faults += 1;
            }
            expected.check_finished(&store).unwrap();
        }
    }
    tally.report(&[("faults", faults)]);
}

#[test]
fn short_writes_are_gone_on_with() {
    let tally = Tally::start("short_writes");
    let mut writes = 0;
    for expected in &jobs()[..2] {
        for part in [|_| 1, |bytes: usize| bytes.div_ceil(2)] {
            let place = folder();
            let disk = FaultyDisk::new(quick_disk(), move |call| match call.op {
                Op::Write => Answer::Take(part(call.bytes)),
                _ => Answer::Do,
            });
            let store = place.path().join("store");
            run(&expected.job, &store, disk.shared()).1.unwrap();
            expected.check_finished(&store).unwrap();
            writes += disk.calls();
        }
    }
    tally.report(&[("calls", writes)]);
}

#[test]
fn interrupted_writes_are_tried_again() {
    for expected in jobs() {
        let place = folder();
        // Three in four are interrupted.
        let disk = FaultyDisk::new(quick_disk(), |call| match call.op {
            Op::Write if call.number % 4 != 0 => Answer::Fail(EINTR),
            _ => Answer::Do,
        });
        let store = place.path().join("store");
        run(&expected.job, &store, disk.shared()).1.unwrap();
        expected.check_finished(&store).unwrap();
    }
}

#[test]
fn an_interrupted_call_is_tried_again_or_reported() {
    let expected = Expected::of(Job::appends_to_finished(Dtype::Float32));
    for number in 0.. {
        let place = folder();
        let store = place.path().join("store");
        let interrupted = Arc::new(Mutex::new(None));
        let op = Arc::clone(&interrupted);
        let disk = FaultyDisk::new(quick_disk(), move |call| {
            if call.number != number {
                return Answer::Do;
            }
            *op.lock().unwrap() = Some(call.op);
            Answer::Fail(EINTR)
        });
        let (told, outcome) = run(&expected.job, &store, disk.shared());
        match *interrupted.lock().unwrap() {
            None => break,
            Some(Op::Write) => outcome.unwrap(),
            Some(_) => assert_eq!(outcome.unwrap_err().errno(), Some(EINTR)),
        }
        if store.exists() {
            holds_and_completes(&expected, &store, told);
        }
    }
}

#[test]
fn a_disk_that_takes_no_byte_and_says_nothing_stops_the_writer() {
    let expected = Expected::of(Job::narrow(Dtype::Float32, 3));
    for number in 0.. {
        let place = folder();
        let store = place.path().join("store");
        let disk = FaultyDisk::new(quick_disk(), move |call| {
            match call.op == Op::Write && call.number >= number {
                true => Answer::Take(0),
                false => Answer::Do,
            }
        });
        let (told, outcome) = run(&expected.job, &store, disk.shared());
        match outcome {
            Ok(()) => break,
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
        holds_and_completes(&expected, &store, told);
    }
}

/// A disk that takes so many bytes, writing short at the end as a full disk does.
fn of_size(size: u64) -> FaultyDisk {
    let left = AtomicU64::new(size);
    FaultyDisk::new(quick_disk(), move |call: &Call<'_>| {
        if call.op != Op::Write {
            return Answer::Do;
        }
        let bytes = call.bytes as u64;
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(bytes))
        });
        match before.unwrap() {
            0 => Answer::Fail(ENOSPC),
            left => Answer::Take(left as usize),
        }
    })
}

#[test]
fn a_disk_that_fills_up_anywhere_keeps_what_was_committed() {
    let tally = Tally::start("disk_full");
    let expected = Expected::of(Job::narrow(Dtype::Float32, effort(5, 20)));
    let mut full = 0;
    for size in (0..).step_by(effort(29, 1)) {
        let place = folder();
        let store = place.path().join("store");
        let (told, outcome) = run(&expected.job, &store, of_size(size).shared());
        match outcome {
            Ok(()) => break,
            Err(error) => assert!(error.to_string().contains("free some space"), "{error}"),
        }
        // With the disk still full nothing gets better, and nothing worse.
        run(&expected.job, &store, of_size(0).shared())
            .1
            .unwrap_err();
        holds_and_completes(&expected, &store, told);
        full += 1;
    }
    tally.report(&[("full_disks", full)]);
}

#[test]
fn a_device_that_is_always_full_is_reported_as_the_system_does() {
    let place = folder();
    let store = place.path().join("store");
    let expected = Expected::of(Job::narrow(Dtype::Float32, 3));
    drop(StoreWriter::create(&store, expected.job.spec(), manual()).unwrap());
    for file in ["shard-00000.rows", "manifest.json.tmp"] {
        // Put there after the store was opened, which would have removed it.
        let full = store.join(file);
        let made = full.clone();
        let disk = FaultyDisk::new(Arc::new(SystemDisk), move |call| {
            if call.op == Op::Create && call.path == made {
                symlink("/dev/full", &made).unwrap();
            }
            Answer::Do
        });
        let (told, outcome) = run(&expected.job, &store, disk.shared());
        let error = outcome.unwrap_err();
        assert_eq!(error.errno(), Some(ENOSPC), "{error}");
        fs::remove_file(full).unwrap();
        judge(expected.read(&store).unwrap(), told).unwrap();
    }
    expected.complete(&store).unwrap();
}

#[test]
fn the_last_writer_stops_where_it_cannot_make_the_store_complete() {
    let place = folder();
    let store = place.path().join("store");
    let open = |writer, disk| {
        let options = WriterOptions {
            writer,
            writers: 2,
            disk,
            ..manual()
        };
        let spec = spec(Dtype::Float32, &NARROW);
        StoreWriter::resume(&store, spec, options, &Workers::serial()).unwrap()
    };
    open(0, quick_disk()).finish(&[]).unwrap();
    let renames = AtomicU64::new(0);
    let disk = FaultyDisk::new(quick_disk(), move |call| {
        let manifest = call.op == Op::Rename && call.path.ends_with("manifest.json");
        // The first one lists the writer as finished.
        match manifest && renames.fetch_add(1, Ordering::Relaxed) == 1 {
            true => Answer::Fail(EIO),
            false => Answer::Do,
        }
    });
    let mut last = open(1, disk.shared());
    append(&mut last, 0, 3);
    assert_eq!(last.finish(&[]).unwrap_err().errno(), Some(EIO));
    assert!(last.broken());
    assert!(matches!(last.commit(), Err(Error::Broken { .. })));
    drop(last);
    assert!(!StoreReader::open(&store).unwrap().complete());
    open(1, quick_disk()).finish(&[]).unwrap();
    assert!(StoreReader::open(&store).unwrap().complete());
}

#[test]
fn a_store_whose_folder_is_removed_is_not_said_to_be_finished() {
    let place = folder();
    let store = place.path().join("store");
    let mut writer = StoreWriter::create(&store, spec(Dtype::Float32, &NARROW), manual()).unwrap();
    append(&mut writer, 0, 3);
    writer.commit().unwrap();
    fs::remove_dir_all(&store).unwrap();
    append(&mut writer, 3, 3);
    let error = writer.finish(&[]).unwrap_err();
    assert!(
        error.to_string().contains(store.to_str().unwrap()),
        "{error}"
    );
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let refused = writer.append(&[], &[], &Workers::serial()).unwrap_err();
    assert!(matches!(refused, Error::Broken { .. }), "{refused}");
    assert!(!store.exists(), "nothing was made in its place");
}

/// Where the tests below find the store when they run as another process.
const STORE: &str = "GRASS_TEST_STORE";

/// Runs one test of this file as another process, begun by a program with these arguments; says that it
/// does not where the system has no such program or does not allow it.
fn in_another_world(test: &str, store: &Path, program: &[&str]) {
    let begin = || {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        command
    };
    let tried = begin().arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("{test} is skipped: {program:?} is not to be had here, or not allowed");
        return;
    }
    let output = begin()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(STORE, store)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn store_of_other_process() -> Option<PathBuf> {
    std::env::var_os(STORE).map(PathBuf::from)
}

/// Without the rights of the superuser, whom permissions do not stop.
#[test]
fn a_store_that_may_not_be_written_is_refused_in_words() {
    let test = "a_store_that_may_not_be_written_is_refused_in_words";
    let expected = Expected::of(Job::narrow(Dtype::Float32, 3));
    let Some(store) = store_of_other_process() else {
        let place = folder();
        let store = place.path().join("store");
        let stopped = failing_once(quick_disk(), 30, EIO);
        let (told, _) = run(&expected.job, &store, stopped.shared());
        assert!(told.rows > 0);
        permit_writing(&store, false);
        in_another_world(test, &store, &["unshare", "--user"]);
        permit_writing(&store, true);
        return holds_and_completes(&expected, &store, told);
    };
    let before = expected.read(&store).unwrap();
    for store in [&store, &store.join("new")] {
        let (_, outcome) = run(&expected.job, store, Arc::new(SystemDisk));
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains(store.to_str().unwrap()), "{message}");
        assert!(message.contains("that you may write"), "{message}");
    }
    assert_eq!(
        expected.read(&store).unwrap(),
        before,
        "and is read as ever"
    );
}

/// Whether a store's folder and files may be written.
fn permit_writing(store: &Path, may: bool) {
    let entries = fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for path in entries.chain([store.to_path_buf()]) {
        let mut permissions = path.metadata().unwrap().permissions();
        let mode = permissions.mode();
        permissions.set_mode(if may { mode | 0o200 } else { mode & !0o222 });
        fs::set_permissions(path, permissions).unwrap();
    }
}

/// On a file system of 64 KiB, which gets larger once it was full.
#[test]
fn a_small_file_system_that_fills_up_keeps_what_was_committed() {
    let test = "a_small_file_system_that_fills_up_keeps_what_was_committed";
    let Some(store) = store_of_other_process() else {
        let place = folder();
        let store = place.path().join("small").join("store");
        fs::create_dir(place.path().join("small")).unwrap();
        let with_mounts = ["unshare", "--user", "--map-root-user", "--mount"];
        return in_another_world(test, &store, &with_mounts);
    };
    let place = store.parent().unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(place);
        assert!(mount.status().unwrap().success());
    };
    let expected = Expected::of(Job::narrow(Dtype::Float32, 1200));
    mount("size=64k");
    let (told, outcome) = run(&expected.job, &store, Arc::new(SystemDisk));
    let error = outcome.unwrap_err();
    assert_eq!(error.errno(), Some(ENOSPC), "{error}");
    assert!(told.rows > 0);
    judge(expected.read(&store).unwrap(), told).unwrap();
    mount("remount,size=4m");
    expected.complete(&store).unwrap();
}
