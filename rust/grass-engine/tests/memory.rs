//! What preconditioning, scoring and self-influence allocate: what they are given and a fixed sum, whatever the number of
//! columns and rows.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{ONE_COMMIT, forget_fisher, numbers, spec, write};
use grass_core::parallel::Workers;
use grass_engine::{Method, precondition, query_rows, score, self_influence};
use grass_store::{Dtype, StoreReader, StoreWriter, WriterOptions};
use ndarray::{Array2, s};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Held by the test that counts.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The system's allocator, counting.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's layout, as the caller must give it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the block came from this allocator, hence from the system's.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// Most bytes that a call held beside what was there before, its result among them.
fn peak<T>(call: impl FnOnce() -> T) -> usize {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = call();
    let taken = PEAK.load(Relaxed) - before;
    drop(result);
    assert!(taken > 1 << 16, "nothing was counted");
    taken
}

/// Given, and beside it: a window of 32 MiB of rows, a matrix and its rows that do not fit what is given, small buffers.
const MEMORY: usize = 8 * MIB;
const MOST_BYTES: usize = MEMORY + 32 * MIB + 10 * MIB;

#[test]
fn memory_stays_below_what_is_given_and_a_fixed_sum() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Matrices and packed rows of 3 MB each, 72 MB together, and rows of 52 MB in double precision for the wide column.
    let mut widths = vec![600; 24];
    widths.push(10_000);
    let width = widths.iter().sum();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let store = {
        let rows = numbers(650, width, 1);
        write(&path, Dtype::Float32, &widths, &rows, ONE_COMMIT)
    };
    let queries = numbers(2, width, 2);
    let workers = Workers::with_threads(2);
    for dampings in [[0.4].as_slice(), &[0.4, 1.0, 3.0]] {
        // Gathered, then loaded.
        for _ in 0..2 {
            let values = queries.as_slice().unwrap();
            let result = dampings.len() * 2 * (width * size_of::<f32>() + 650 * size_of::<f64>());
            let taken = peak(|| precondition(&store, values, dampings, MEMORY, &workers).unwrap());
            assert!(taken - result < MOST_BYTES, "{taken} bytes");
        }
        forget_fisher(&store);
    }
}

/// A store of so many copies of some rows.
fn copies(path: &Path, widths: &[usize], rows: &Array2<f32>, copies: usize) -> StoreReader {
    let options = WriterOptions {
        commit_bytes: u64::MAX,
        commit_interval: Duration::MAX,
        ..WriterOptions::default()
    };
    let mut writer = StoreWriter::create(path, spec(Dtype::Float32, widths), options).unwrap();
    for copy in 0..copies {
        let ids: Vec<u64> = (0..rows.nrows())
            .map(|row| (copy * rows.nrows() + row) as u64)
            .collect();
        writer
            .append(rows.as_slice().unwrap(), &ids, &Workers::serial())
            .unwrap();
    }
    writer.finish(&[]).unwrap();
    StoreReader::open(path).unwrap()
}

/// The smaller of the stores already fills the window.
#[test]
fn memory_does_not_grow_with_the_number_of_rows() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let widths = [300, 100, 600];
    let folder = tempfile::tempdir().unwrap();
    let rows = numbers(10_000, 1000, 1);
    let few = copies(&folder.path().join("few"), &widths, &rows, 1);
    let many = copies(&folder.path().join("many"), &widths, &rows, 8);
    drop(rows);
    let queries = numbers(20, 1000, 2);
    let values = queries.as_slice().unwrap();
    let workers = Workers::with_threads(2);
    let scored = |method| {
        [&few, &many]
            .map(|store| peak(|| score(store, values, method, &[0.4], Some(10), &workers).unwrap()))
    };
    // A buffer a thread, the laid out queries.
    let [small, large] = scored(Method::GradDot);
    assert!(
        large < 8 * MIB && large < small + MIB / 4,
        "{small}, {large}"
    );
    // The preconditioned queries as well, some rows, and matrices with their packed rows.
    let [small, large] = scored(Method::Influence);
    assert!(
        large < 12 * MIB && large < small + MIB / 4,
        "{small}, {large}"
    );
    // Their matrices are saved by now. A window of rows; the result and its sums in double precision are left out.
    let [small, large] = [&few, &many].map(|store| {
        let result = store.rows() as usize * (size_of::<f32>() + size_of::<f64>());
        peak(|| self_influence(store, &[0.4], &workers).unwrap()) - result
    });
    assert!(
        large < 48 * MIB && large < small + 2 * MIB,
        "{small}, {large}"
    );
}

/// A row of 24 MiB, as wide as many buffers: of no row is more held than a part.
#[test]
fn long_rows_are_not_held() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let widths = [3, (6 << 20) - 5, 2];
    let width: usize = widths.iter().sum();
    let row = width * size_of::<f32>();
    let folder = tempfile::tempdir().unwrap();
    let rows = numbers(5, width, 1);
    let store = copies(&folder.path().join("s"), &widths, &rows, 1);
    let queries = rows.slice(s![1..2, ..]).to_owned();
    drop(rows);
    let values = queries.as_slice().unwrap();
    let workers = Workers::with_threads(2);
    let scored =
        |method| peak(|| score(&store, values, method, &[0.4], Some(2), &workers).unwrap());
    // The query laid out for the kernels, and with influence the preconditioned one, are as long as a row.
    for method in [Method::GradDot, Method::GradCos] {
        let taken = scored(method);
        assert!(taken < row + 8 * MIB, "{taken} bytes");
    }
    let taken = scored(Method::Influence);
    assert!(taken < 2 * row + 8 * MIB, "{taken} bytes");
    let taken = peak(|| self_influence(&store, &[0.4, 1.0], &workers).unwrap());
    assert!(taken < 8 * MIB, "{taken} bytes");
    let taken = peak(|| query_rows(&store, &workers).unwrap());
    assert!(taken < 5 * row + 32 * MIB, "{taken} bytes");
}
