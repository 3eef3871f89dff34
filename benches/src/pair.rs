//! A kernel beside its limit or rival, both timed in turn, so that noise and the state of the caches meet both alike.
//!
//! Criterion reports the kernel; the ratio comes from the medians of the two. Where [`VARIABLE`] names a file, every pair
//! is appended to it as a line of JSON.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use criterion::Criterion;
use grass_core::simd::Path;
use serde_json::json;

/// The environment variable that names the file of rows.
pub const VARIABLE: &str = "GRASS_BENCH_ROWS";

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The kernel.
    pub what: &'a str,
    /// Its limit or rival.
    pub against: &'a str,
    /// Bytes of input that the kernel must read.
    pub bytes: usize,
    /// Multiplications and additions that it must do, 0 where reading is the limit.
    pub operations: usize,
}

/// How the benches are run: short, because each sample already is a pair, and the pairs are many.
pub fn configured() -> Criterion {
    Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1000))
}

impl Pair<'_> {
    /// Times both, and returns their median seconds; `None` where the command line's filter leaves the pair out.
    ///
    /// # Panics
    /// If the file of rows cannot be written.
    pub fn measure(
        &self,
        criterion: &mut Criterion,
        mut ours: impl FnMut(),
        mut theirs: impl FnMut(),
    ) -> Option<(f64, f64)> {
        let mut times = (Vec::new(), Vec::new());
        let id = format!("{} | {}", self.what, self.against);
        criterion.bench_function(&id, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let time = timed(&mut ours);
                    total += time;
                    times.0.push(time.as_secs_f64());
                    times.1.push(timed(&mut theirs).as_secs_f64());
                }
                total
            });
        });
        if times.0.is_empty() {
            return None;
        }
        let (seconds, its_seconds) = (median(times.0), median(times.1));
        eprintln!("{:24}ratio {:.3}", "", seconds / its_seconds);
        write_row(&json!({
            "what": self.what, "against": self.against, "value": seconds, "its_value": its_seconds,
            "unit": "s", "bytes": self.bytes, "operations": self.operations, "simd": Path::current().name(),
        }));
        Some((seconds, its_seconds))
    }
}

/// Appends a row to the file of rows, where one is asked for.
///
/// # Panics
/// If the file cannot be written.
pub fn write_row(row: &serde_json::Value) {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{row}"))
            .expect("a file of rows that can be written");
    }
}

fn timed(call: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
