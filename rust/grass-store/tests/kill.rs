//! A process killed at any moment loses no row for which a commit had returned.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use disks::job::{Expected, Job, judge};
use disks::recorder::Told;
use disks::{Random, Tally, effort};
use grass_store::{Dtype, SystemDisk};

/// Where the killed process finds its store, and which job it shall do.
const STORE: &str = "GRASS_TEST_KILLED_STORE";
const JOB: &str = "GRASS_TEST_KILLED_JOB";

/// What a report of the killed process begins with.
const REPORT: &str = "told ";

fn jobs() -> [Job; 3] {
    [
        Job::narrow(Dtype::Float32, 60),
        Job::chunks_and_shards(),
        Job::appends_to_finished(Dtype::Int8),
    ]
}

/// The process that gets killed: only a part of the test below.
#[test]
fn writes_and_reports_until_it_is_killed() {
    let Some(store) = std::env::var_os(STORE).map(PathBuf::from) else {
        return;
    };
    let number: usize = std::env::var(JOB).unwrap().parse().unwrap();
    let mut reports = std::io::stdout();
    let mut report = |told: Told| {
        let Told {
            rows,
            given,
            complete,
            ..
        } = told;
        writeln!(reports, "\n{REPORT}{rows} {given} {complete}").unwrap();
    };
    jobs()[number]
        .run(&store, Arc::new(SystemDisk), &mut report)
        .unwrap();
}

/// A running writer and what it has reported.
struct Victim {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    told: Told,
}

impl Victim {
    fn start(store: &Path, job: usize, told: Told) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_and_reports_until_it_is_killed"])
            .arg("--nocapture")
            .env(STORE, store)
            .env(JOB, job.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            lines: output.lines(),
            told,
        }
    }

    /// Waits for the next report; `false` when none comes any more.
    fn listen(&mut self) -> bool {
        for line in self.lines.by_ref() {
            // A line cut short by the kill is no report.
            let line = line.unwrap();
            let words: Option<Vec<_>> = line
                .strip_prefix(REPORT)
                .map(|words| words.split(' ').collect());
            if let Some([rows, given, complete]) = words.as_deref() {
                let Ok(complete) = complete.parse() else {
                    continue;
                };
                self.told = Told {
                    exists: true,
                    rows: rows.parse().unwrap(),
                    given: given.parse().unwrap(),
                    complete,
                };
                return true;
            }
        }
        false
    }

    /// Kills it after some more reports and turns of a loop. Whether it was still running, and what
    /// it had reported.
    fn kill(mut self, reports: usize, turns: usize) -> (bool, Told) {
        for _ in 0..reports {
            if !self.listen() {
                break;
            }
        }
        for _ in 0..turns {
            std::hint::spin_loop();
        }
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        while self.listen() {}
        (!status.success(), self.told)
    }
}

#[test]
fn a_process_killed_at_random_moments_loses_nothing() {
    let tally = Tally::start("kills");
    let wanted = effort(25, 200);
    let expected = jobs().map(Expected::of);
    let (mut kills, mut stores, mut rows) = (0, 0, 0);
    for seed in 0.. {
        if kills >= wanted {
            break;
        }
        let random = &mut Random(seed);
        let job = random.below(expected.len());
        let place = tempfile::tempdir().unwrap();
        let store = place.path().join("store");
        let mut told = Told::default();
        loop {
            let magnitude = random.below(18);
            let (reports, turns) = (random.below(24), random.below(1 << magnitude));
            let (killed, now) = Victim::start(&store, job, told).kill(reports, turns);
            told = now;
            let outcome = expected[job]
                .read(&store)
                .and_then(|shown| judge(shown, told));
            if let Err(loss) = outcome {
                panic!("seed {seed}, after {kills} kills: {loss}");
            }
            if !killed {
                break;
            }
            kills += 1;
        }
        if let Err(difference) = expected[job].check_finished(&store) {
            panic!("seed {seed}: {difference}");
        }
        stores += 1;
        rows += expected[job].job.rows();
    }
    tally.report(&[("kills", kills), ("stores", stores), ("rows", rows)]);
}
