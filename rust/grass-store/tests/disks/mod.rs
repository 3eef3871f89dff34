//! Disks that record, fail and forget, and the jobs that are run on them.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    reason = "helpers of tests: every test file compiles its own copy and uses a part of it"
)]

pub mod after_power_loss;
pub mod checker;
pub mod faulty;
pub mod interruption;
pub mod job;
pub mod recorder;

use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

/// Whether to look at more states, kills and faults, for minutes instead of seconds.
pub fn long() -> bool {
    std::env::var_os("GRASS_TEST_LONG").is_some()
}

/// `bounded` of something in an ordinary run, `long` in a long one.
pub fn effort(bounded: usize, long: usize) -> usize {
    if self::long() { long } else { bounded }
}

/// A new folder, in memory where the system has such a place: nothing here outlives the test.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// What one test did, for the figures of a long run.
pub struct Tally {
    name: &'static str,
    started: Instant,
}

impl Tally {
    pub fn start(name: &'static str) -> Self {
        Self {
            name,
            started: Instant::now(),
        }
    }

    /// Prints the line that the script of the long run reads.
    pub fn report(self, counts: &[(&str, usize)]) {
        let mut line = serde_json::json!({
            "name": self.name,
            "seconds": (self.started.elapsed().as_secs_f64() * 100.0).round() / 100.0,
        });
        for &(what, count) in counts {
            assert!(count > 0, "{} looked at no {what}", self.name);
            line[what] = count.into();
        }
        eprintln!("GRASS-LONG {line}");
    }
}

/// Random numbers that a seed brings back (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
