//! A step that is killed, or whose sync fails once, is made again on the same running system: what that system
//! still has in memory, and takes for durable though it is not, never stands in for what is on the disk.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{
    NARROW, append, copy_store, edit, files, finished, ids, manual, much_damaged, rows, spec, width,
};
use disks::after_power_loss::Effort;
use disks::checker::Checker;
use disks::faulty::{Answer, FaultyDisk, Op, quick_disk};
use disks::interruption::Interruption::{Failure, Kill};
use disks::job::{Expected, Job, Shown};
use disks::recorder::Told;
use disks::{Tally, folder, long};
use grass_core::parallel::Workers;
use grass_store::{Disk, Dtype, Error, StoreReader, StoreWriter, SystemDisk, merge, repair};

const SEED: u64 = 11;

fn states() -> Effort {
    Effort {
        every_byte: 0,
        places: 0,
        subsets: if long() { 6 } else { 3 },
        random: if long() { 6 } else { 1 },
    }
}

type Run<'a> = dyn Fn(&Path, Arc<dyn Disk>, &mut dyn FnMut(Told)) -> Result<(), Error> + 'a;

/// Something that is done to a store, and can be done again.
struct Step<'a> {
    name: &'static str,
    /// The folder that is copied to begin with.
    from: &'a Path,
    /// Does it to `store` in the folder, and tells what its owner may count on.
    run: &'a Run<'a>,
    /// Says what the store in the folder shows, and does it there to its expected end.
    outcome: &'a dyn Fn(&Path) -> Result<Shown, String>,
    /// What the owner may count on before.
    before: Told,
}

/// Interrupts the step, makes it again, and lets the power fail at each moment after the interruption,
/// and at every one of a step that nothing interrupts. It is killed at each call, and each sync
/// fails; in a long run every other call too, which leaves no more in memory than a killed step.
fn survives(step: &Step<'_>) {
    let place = folder();
    let root = place.path().join("root");
    let ops = calls_of(step, &root);
    let fails = |op| long() || matches!(op, Op::Sync | Op::SyncFolder);
    let failures = (0..ops.len()).filter(|&number| fails(ops[number]));
    let failures = failures.map(|number| (Failure, number));
    let all = (0..=ops.len()).map(|number| (Kill, number)).chain(failures);
    let tally = Tally::start(step.name);
    let mut checker = Checker::new(step.outcome, &root, states(), SEED);
    let mut interruptions = 0;
    for (interruption, number) in all {
        let (recorder, _, disk) = begin(step, &root, |root| interruption.at(number, root));
        recorder.told(step.before);
        let mut from = recorder.events().len();
        let _ = (step.run)(&root, disk, &mut |told| recorder.told(told));
        if number < ops.len() {
            from = recorder.events().len();
            let again = (step.run)(&root, recorder.shared(), &mut |told| recorder.told(told));
            again.unwrap();
        }
        if let Err(loss) = checker.check(&recorder.events(), from) {
            let name = step.name;
            panic!("{name}, {interruption:?} at call {number}, seed {SEED}: {loss}");
        }
        interruptions += usize::from(number < ops.len());
    }
    tally.report(&[
        ("interruptions", interruptions),
        ("moments", checker.moments),
        ("states", checker.states),
        ("different_states", checker.different()),
    ]);
}

/// The calls of a step that nothing interrupts.
fn calls_of(step: &Step<'_>, root: &Path) -> Vec<Op> {
    let ops = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ops);
    let disk = begin(step, root, |_| {
        FaultyDisk::new(quick_disk(), move |call| {
            seen.lock().unwrap().push(call.op);
            Answer::Do
        })
    });
    (step.run)(root, disk.shared(), &mut |_| ()).unwrap();
    std::mem::take(&mut *ops.lock().unwrap())
}

/// Puts what a step begins with into the folder, and then makes a disk there.
fn begin<T>(step: &Step<'_>, root: &Path, disk: impl FnOnce(&Path) -> T) -> T {
    let _ = fs::remove_dir_all(root);
    copy_folder(step.from, root);
    disk(root)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        copy_store(&path, &to.join(path.file_name().unwrap()));
    }
}

/// A store of [`Job::three_rows`] whose writer had committed some of them when it was killed, amid
/// writing more: its files go on after what is committed.
fn left_by_a_killed_writer(folder: &Path, job: &Job, commits: &[usize]) {
    let store = folder.join("store");
    let mut writer = StoreWriter::create(&store, job.spec(), manual()).unwrap();
    let mut first = 0;
    for &count in commits {
        append(&mut writer, first, count);
        writer.commit().unwrap();
        first += count;
    }
    append(&mut writer, first, 6 - first);
    drop(writer);
    edit(&store.join("shard-00000.ids"), |bytes| {
        bytes.extend([7; 13])
    });
    edit(&store.join("shard-00000.log"), |bytes| {
        bytes.extend([0; 45])
    });
}

fn a_resume_that_cuts_survives(name: &'static str, commits: &[usize]) {
    let expected = Expected::of(Job::three_rows());
    let place = folder();
    left_by_a_killed_writer(place.path(), &expected.job, commits);
    let rows = commits.iter().sum::<usize>() as u64;
    survives(&Step {
        name,
        from: place.path(),
        run: &|root, disk, tell| expected.job.run(&root.join("store"), disk, tell),
        outcome: &|root| expected.read_and_complete(root),
        before: Told {
            exists: true,
            rows,
            given: rows,
            complete: false,
        },
    });
}

#[test]
fn a_resume_that_has_only_to_cut_and_to_finish() {
    a_resume_that_cuts_survives("failed_sync_cut_and_finish", &[2, 1]);
}

#[test]
fn a_resume_that_cuts_and_writes_the_rest() {
    a_resume_that_cuts_survives("failed_sync_cut_and_write", &[2]);
}

#[test]
fn a_resume_of_a_shard_without_a_committed_row() {
    a_resume_that_cuts_survives("failed_sync_no_row", &[]);
}

#[test]
fn rows_that_are_appended_to_a_finished_store() {
    let expected = Expected::of(Job::appends_to_finished(Dtype::Int8));
    let place = folder();
    survives(&Step {
        name: "failed_sync_append",
        from: place.path(),
        run: &|root, disk, tell| expected.job.run(&root.join("store"), disk, tell),
        outcome: &|root| expected.read_and_complete(root),
        before: Told::default(),
    });
}

/// A merge of two stores of two rows into one that has three, or has yet to be made.
fn a_merge_survives(name: &'static str, had: usize) {
    let place = folder();
    let narrow = || spec(Dtype::Float32, &NARROW);
    for (source, first) in [("a", 3), ("b", 5)] {
        let path = place.path().join(source);
        let mut writer = StoreWriter::create(&path, narrow(), manual()).unwrap();
        append(&mut writer, first, 2);
        writer.finish(&[first as u64]).unwrap();
    }
    if had > 0 {
        finished(&place.path().join("store"), narrow(), had);
    }
    // Rows had, and those of the two stores: a shard each.
    let shards = [0..had, 3..5, 5..7];
    let run = |root: &Path, disk: &dyn Disk| {
        let sources = ["a", "b"].map(|source| root.join(source));
        merge(&sources, &root.join("store"), disk, &Workers::serial())
    };
    let whole = folder();
    copy_folder(place.path(), &whole.path().join("root"));
    run(&whole.path().join("root"), &SystemDisk).unwrap();
    let expected = files(&whole.path().join("root/store"));
    let all = had as u64 + 4;
    survives(&Step {
        name,
        from: place.path(),
        run: &|root, disk, tell| {
            run(root, &*disk)?;
            tell(Told {
                exists: true,
                rows: all,
                given: all,
                complete: true,
            });
            Ok(())
        },
        outcome: &|root| {
            let store = root.join("store");
            let shown = match StoreReader::open(&store) {
                Err(Error::NotFound { .. }) => None,
                opened => Some(whole_shards(opened, &shards)?),
            };
            run(root, &*quick_disk()).map_err(|error| format!("it is not merged: {error}"))?;
            match files(&store) == expected {
                true => Ok(shown),
                false => Err("it is merged to other files".to_owned()),
            }
        },
        before: Told {
            exists: had > 0,
            rows: had as u64,
            given: all,
            complete: false,
        },
    });
}

/// How many rows a store has, which must be those of the first of these shards and of any others, and
/// whether it is complete.
fn whole_shards(
    opened: Result<StoreReader, Error>,
    shards: &[Range<usize>; 3],
) -> Result<(u64, bool), String> {
    let workers = Workers::serial();
    let read = || {
        let store = opened?;
        store.verify(&workers)?;
        let numbers: Vec<u64> = (0..store.rows()).collect();
        let values = store.read_rows(&numbers, &workers)?;
        Ok((store.ids(&workers)?, values, store.complete()))
    };
    let (got, values, complete) = read().map_err(|error: Error| error.to_string())?;
    let width = width(&spec(Dtype::Float32, &NARROW));
    let holds = |others: &[usize]| {
        let parts = [0].iter().chain(others).map(|&shard| &shards[shard]);
        let (ids, rows): (Vec<_>, Vec<_>) = parts
            .map(|part| {
                (
                    ids(part.start, part.len()),
                    rows(part.start, part.len(), width),
                )
            })
            .unzip();
        (ids.concat(), rows.concat()) == (got.clone(), values.clone())
    };
    let any = [&[][..], &[1], &[2], &[1, 2]];
    match any.into_iter().find(|others| holds(others)) {
        Some([_]) if complete => Err("it is complete with a part of the rows".to_owned()),
        Some(_) => Ok((got.len() as u64, complete)),
        None => Err(format!("it holds the rows of {got:?}")),
    }
}

#[test]
fn a_merge_into_a_new_store() {
    a_merge_survives("failed_sync_merge_new", 0);
}

#[test]
fn a_merge_into_a_store() {
    a_merge_survives("failed_sync_merge", 3);
}

#[test]
fn a_repair() {
    let place = folder();
    let damaged: PathBuf = much_damaged(place.path());
    fs::rename(damaged, place.path().join("store")).unwrap();
    let run = |root: &Path, disk: &dyn Disk| repair(&root.join("store"), disk, &Workers::serial());
    let whole = folder();
    copy_folder(place.path(), &whole.path().join("root"));
    let kept = run(&whole.path().join("root"), &SystemDisk)
        .unwrap()
        .kept_rows;
    let expected = files(&whole.path().join("root/store"));
    survives(&Step {
        name: "failed_sync_repair",
        from: place.path(),
        run: &|root, disk, tell| {
            run(root, &*disk)?;
            tell(Told {
                exists: true,
                rows: kept,
                given: kept,
                complete: false,
            });
            Ok(())
        },
        outcome: &|root| {
            let store = root.join("store");
            let opened = StoreReader::open(&store);
            let shown =
                match opened.and_then(|store| store.verify(&Workers::serial()).map(|()| store)) {
                    Ok(store) => Some((store.rows(), store.complete())),
                    Err(Error::Corrupt { .. } | Error::Repair { .. }) => None,
                    Err(error) => return Err(format!("it is not to be repaired: {error}")),
                };
            run(root, &*quick_disk()).map_err(|error| format!("it is not repaired: {error}"))?;
            match files(&store) == expected {
                true => Ok(shown),
                false => Err("it is repaired to other files".to_owned()),
            }
        },
        before: Told {
            given: kept,
            ..Told::default()
        },
    });
}
