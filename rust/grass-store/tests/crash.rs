//! Whatever a power loss leaves of a store opens to exactly the rows that were committed, and is gone
//! on with to the same bytes. What a disk may hold then is said in `disks/after_power_loss.rs`.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::path::Path;
use std::sync::Arc;

use disks::after_power_loss::Effort;
use disks::checker::{Checker, put};
use disks::faulty::{Answer, Call, FaultyDisk, Op, quick_disk};
use disks::interruption::Interruption;
use disks::job::{Expected, Job};
use disks::recorder::{Event, Recorder};
use disks::{Tally, effort, folder, long};
use grass_store::{Disk, Dtype};

const SEED: u64 = 6;

fn states() -> Effort {
    match long() {
        false => Effort {
            every_byte: 24,
            places: 2,
            subsets: 6,
            random: 4,
        },
        true => Effort {
            every_byte: 100,
            places: 12,
            subsets: 6,
            random: 40,
        },
    }
}

/// Fewer states a moment, where there are many moments or long rows.
fn few_states() -> Effort {
    match long() {
        false => Effort {
            every_byte: 0,
            places: 0,
            subsets: 4,
            random: 1,
        },
        true => Effort {
            every_byte: 24,
            places: 2,
            subsets: 6,
            random: 6,
        },
    }
}

/// Runs the job in a folder, through a disk made around the recorder, and returns how it ended.
fn record(
    job: &Job,
    recorder: &Recorder,
    root: &Path,
    around: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>,
) -> Result<(), grass_store::Error> {
    let disk = around(recorder.shared());
    job.run(&root.join("store"), disk, &mut |told| recorder.told(told))
}

fn events_of(
    job: &Job,
    root: &Path,
    around: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>,
) -> Vec<Event> {
    let recorder = Recorder::new(quick_disk(), root);
    record(job, &recorder, root, around).unwrap();
    recorder.events()
}

fn survives_power_loss(name: &'static str, job: Job, states: Effort) {
    let tally = Tally::start(name);
    let root = folder();
    let events = events_of(&job, root.path(), |disk| disk);
    let expected = Expected::of(job);
    let mut checker = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        states,
        SEED,
    );
    if let Err(loss) = checker.check(&events, 0) {
        panic!("{name}, seed {SEED}: {loss}");
    }
    tally.report(&[
        ("moments", checker.moments),
        ("states", checker.states),
        ("different_states", checker.different()),
    ]);
}

#[test]
fn commits_inside_a_chunk_survive_power_loss() {
    let job = Job::narrow(Dtype::Float32, effort(5, 60));
    survives_power_loss("power_loss_narrow_float32", job, states());
}

#[test]
fn commits_of_int8_rows_survive_power_loss() {
    let job = Job::narrow(Dtype::Int8, effort(3, 30));
    survives_power_loss("power_loss_narrow_int8", job, states());
}

#[test]
fn commits_across_chunks_and_shards_survive_power_loss() {
    survives_power_loss("power_loss_shards", Job::chunks_and_shards(), few_states());
}

#[test]
fn commits_by_bytes_survive_power_loss() {
    survives_power_loss("power_loss_by_bytes", Job::commits_by_bytes(), few_states());
}

#[test]
fn rows_after_finishing_survive_power_loss() {
    let job = Job::appends_to_finished(Dtype::Float32);
    survives_power_loss("power_loss_appends", job, states());
}

#[test]
fn a_commit_over_two_sectors_of_the_log_survives_power_loss() {
    let tally = Tally::start("power_loss_two_sectors");
    let root = folder();
    let job = Job::two_sectors_of_log();
    let events = events_of(&job, root.path(), |disk| disk);
    let expected = Expected::of(job);
    let mut checker = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        few_states(),
        SEED,
    );
    // The last commit: its rows, ids, two or more groups of records, and the finishing.
    let told = |event: &Event| matches!(event, Event::Told(_));
    let from = events.len() - events.iter().rev().position(told).unwrap() - 1;
    let from = from - events[..from].iter().rev().position(told).unwrap() - 1;
    checker.check(&events, from).unwrap();
    tally.report(&[("moments", checker.moments), ("states", checker.states)]);
}

/// Interrupts a job at each of its calls, goes on with it on the same running system, and lets the
/// power fail at each moment after that.
fn survives_power_loss_after(interruption: Interruption, name: &'static str, job: Job) {
    let tally = Tally::start(name);
    let root = folder();
    let expected = Expected::of(job);
    let mut checker = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        few_states(),
        SEED,
    );
    let mut interruptions = 0;
    for number in 0.. {
        let (recorder, interrupted, disk) = interruption.at(number, root.path());
        let outcome = record(&expected.job, &recorder, root.path(), |_| disk);
        if interrupted.calls() <= number {
            break;
        }
        outcome.unwrap_err();
        interruptions += 1;
        let before = recorder.events().len();
        record(&expected.job, &recorder, root.path(), |disk| disk).unwrap();
        if let Err(loss) = checker.check(&recorder.events(), before) {
            panic!("{name}, interrupted at call {number}, seed {SEED}: {loss}");
        }
        std::fs::remove_dir_all(root.path().join("store")).unwrap();
    }
    tally.report(&[
        ("interruptions", interruptions),
        ("moments", checker.moments),
        ("states", checker.states),
        ("different_states", checker.different()),
    ]);
}

#[test]
fn what_a_killed_writer_left_in_memory_survives_a_later_power_loss() {
    let job = Job::appends_to_finished(Dtype::Float32);
    survives_power_loss_after(Interruption::Kill, "power_loss_after_kill", job);
}

#[test]
fn what_a_failed_sync_left_in_memory_survives_a_later_power_loss() {
    let job = Job::narrow(Dtype::Float32, effort(3, 30));
    survives_power_loss_after(Interruption::Failure, "power_loss_after_failure", job);
}

#[test]
fn a_power_loss_while_mending_an_earlier_one_loses_nothing() {
    let tally = Tally::start("power_loss_twice");
    let root = folder();
    let job = Job::narrow(Dtype::Float32, effort(3, 12));
    let events = events_of(&job, root.path(), |disk| disk);
    let expected = Expected::of(job);
    let mut first = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        states(),
        SEED,
    );
    first.check(&events, 0).unwrap();
    let mut second = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        few_states(),
        SEED,
    );
    let states: Vec<_> = first.kept.iter().take(effort(25, 300)).collect();
    for (state, told) in &states {
        put(state, root.path(), root.path());
        let recorder = Recorder::new(quick_disk(), root.path());
        recorder.told(*told);
        let from = recorder.events().len();
        record(&expected.job, &recorder, root.path(), |disk| disk).unwrap();
        if let Err(loss) = second.check(&recorder.events(), from) {
            panic!("seed {SEED}: {loss}");
        }
    }
    tally.report(&[
        ("first_states", states.len()),
        ("moments", second.moments),
        ("states", second.states),
        ("different_states", second.different()),
    ]);
}

type Picks = fn(&Call<'_>) -> bool;

/// The loss that is found when the calls that a rule picks are not done, though the writer thinks so.
fn loss_without(job: Job, dropped: Picks) -> Option<String> {
    let root = folder();
    let events = events_of(&job, root.path(), |disk| {
        let rule = move |call: &Call<'_>| match dropped(call) {
            true => Answer::Pretend,
            false => Answer::Do,
        };
        FaultyDisk::new(disk, rule).shared()
    });
    let expected = Expected::of(job);
    let mut checker = Checker::new(
        |place| expected.read_and_complete(place),
        root.path(),
        few_states(),
        SEED,
    );
    checker.check(&events, 0).err()
}

fn is_of(call: &Call<'_>, kind: &str) -> bool {
    call.path.to_str().unwrap().ends_with(kind)
}

#[test]
fn the_checker_finds_every_kind_of_sync_that_is_left_out() {
    let without: [(&str, Picks); 6] = [
        ("any sync", |call| {
            matches!(call.op, Op::Sync | Op::SyncFolder)
        }),
        ("syncs of rows", |call| {
            call.op == Op::Sync && is_of(call, ".rows")
        }),
        ("syncs of ids", |call| {
            call.op == Op::Sync && is_of(call, ".ids")
        }),
        ("syncs of logs", |call| {
            call.op == Op::Sync && is_of(call, ".log")
        }),
        ("syncs of new files", |call| {
            call.op == Op::Sync && is_of(call, ".tmp")
        }),
        ("syncs of folders", |call| call.op == Op::SyncFolder),
    ];
    for (what, dropped) in without {
        let loss = loss_without(Job::narrow(Dtype::Float32, 3), dropped);
        assert!(loss.is_some(), "no loss was found without {what}");
    }
    assert_eq!(
        loss_without(Job::narrow(Dtype::Float32, 3), |_| false),
        None
    );
}
