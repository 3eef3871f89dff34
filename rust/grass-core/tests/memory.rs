//! What compressing allocates: little whatever the shape, and nothing when a call is made again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use grass_core::Compressor;
use grass_core::dtype::{Array, Factor};
use grass_core::parallel::Workers;
use grass_core::spec::Spec;
use half::bf16;
use ndarray::{Array1, ArrayView, Dimension, Ix2, Ix3, ShapeBuilder};

/// What a thread may take.
const MOST_BYTES: usize = 8 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Allocations of this thread: the test harness has others.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Holds off the other tests: live bytes are of all threads.
fn alone() -> MutexGuard<'static, ()> {
    static MEASURING: Mutex<()> = Mutex::new(());
    MEASURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The system's allocator, counting.
struct Counting;

fn count_allocation(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation(layout.size());
        // SAFETY: the caller's layout, as the caller must give it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_allocation(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may be there at a time.
        count_allocation(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the block came from this allocator, hence from the system's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How the values of a call lie in memory. All have few values of their own: rows repeat.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// Rows of f32 in one piece.
    F32,
    /// Rows of bf16 in one piece, which every kernel has to convert.
    Bf16,
    /// One f32 for all, read by a stride of zero: for rows too long to hold.
    Same,
}

/// A call that asks for much: large outputs, many rows, long sequences, wide layers, small masks.
#[derive(Debug, Clone)]
struct Case {
    spec: String,
    examples: usize,
    /// Tokens an example, of factors.
    tokens: usize,
    values: Values,
}

fn case(values: Values, examples: usize, tokens: usize, spec: &str) -> Case {
    Case {
        spec: spec.to_owned(),
        examples,
        tokens,
        values,
    }
}

fn mask(p: usize, k: usize) -> String {
    format!(r#"{{"type":"random_mask","input_dim":{p},"output_dim":{k},"seed":1,"block":1}}"#)
}

fn sjlt(p: usize, k: usize, nnz: usize, kind: &str) -> String {
    format!(
        r#"{{"type":"sjlt","input_dim":{p},"output_dim":{k},"seed":2,"nnz":{nnz},"kind":"{kind}"}}"#
    )
}

fn gaussian(p: usize, k: usize, kind: &str) -> String {
    format!(r#"{{"type":"gaussian","input_dim":{p},"output_dim":{k},"seed":3,"kind":"{kind}"}}"#)
}

fn grass(p: usize, kept: usize, k: usize, kind: &str) -> String {
    format!(
        r#"{{"type":"grass","input_dim":{p},"output_dim":{k},"seed":4,"mask_dim":{kept},"mask":{},"kind":"{kind}"}}"#,
        mask(p, kept)
    )
}

fn logra(d: (usize, usize), rank: (usize, usize)) -> String {
    format!(
        r#"{{"type":"logra","in_features":{},"out_features":{},"rank_in":{},"rank_out":{},"seed":5}}"#,
        d.0, d.1, rank.0, rank.1
    )
}

fn factgrass(d: (usize, usize), kept: (usize, usize), k: usize, kind: &str) -> String {
    format!(
        r#"{{"type":"factgrass","in_features":{},"out_features":{},"output_dim":{k},"seed":6,"mask_in":{},"mask_out":{},"kind":"{kind}"}}"#,
        d.0,
        d.1,
        mask(d.0, kept.0),
        mask(d.1, kept.1)
    )
}

fn tile(d: (usize, usize), k: usize) -> String {
    format!(
        r#"{{"type":"tile","in_features":{},"out_features":{},"output_dim":{k},"seed":7}}"#,
        d.0, d.1
    )
}

fn cases() -> Vec<Case> {
    use Values::{Bf16, F32, Same};
    vec![
        case(
            F32,
            40,
            0,
            r#"{"type":"mask","indices":[3,5,90000],"input_dim":90001}"#,
        ),
        case(Bf16, 3, 0, &mask(1 << 21, 1 << 20)),
        case(F32, 50_000, 0, &mask(40, 7)),
        // Outputs of 8 MiB a row, in one segment of coordinates and in more.
        case(F32, 3, 0, &sjlt(1 << 21, 1 << 21, 1, "cyclic")),
        case(Same, 3, 0, &sjlt((1 << 24) + 5, 1 << 21, 1, "cyclic")),
        case(Same, 3, 0, &sjlt((1 << 23) + 5, 1 << 20, 4, "cyclic")),
        case(F32, 3, 0, &sjlt(1 << 21, 1 << 21, 1, "iid")),
        case(Same, 3, 0, &sjlt((1 << 23) + 5, 1 << 20, 1, "iid")),
        case(Bf16, 40, 0, &sjlt(300_000, 30_000, 3, "cyclic")),
        case(Bf16, 40, 0, &sjlt(300_000, 30_000, 1, "iid")),
        case(F32, 100_000, 0, &sjlt(20, 6, 1, "cyclic")),
        case(F32, 100_000, 0, &sjlt(20, 6, 1, "iid")),
        case(F32, 550, 0, &gaussian(1030, 4096, "rademacher")),
        case(Bf16, 3, 0, &gaussian(3, 1 << 21, "rademacher")),
        case(Bf16, 3000, 0, &gaussian(1100, 20, "normal")),
        case(F32, 2, 0, &gaussian(2, 1 << 21, "normal")),
        case(Bf16, 40, 0, &grass(1 << 20, 1 << 18, 1 << 16, "cyclic")),
        case(F32, 3, 0, &grass(1 << 21, 1 << 20, 1 << 20, "iid")),
        case(F32, 20_000, 0, &grass(90, 16, 4, "cyclic")),
        case(F32, 2, 60_000, &logra((30, 20), (64, 48))),
        case(Bf16, 2, 40, &logra((5000, 3000), (12, 9))),
        case(F32, 2, 3, &logra((40, 30), (1500, 1400))),
        case(F32, 3000, 1, &logra((40, 30), (16, 16))),
        case(
            F32,
            4,
            64,
            &factgrass((2048, 2048), (128, 128), 4096, "cyclic"),
        ),
        case(
            Bf16,
            40,
            3,
            &factgrass((600, 700), (512, 512), 4096, "cyclic"),
        ),
        case(
            F32,
            2,
            3,
            &factgrass((1 << 21, 2), (1 << 21, 2), 64, "cyclic"),
        ),
        case(F32, 2, 3, &factgrass((2, 1 << 21), (2, 1 << 21), 64, "iid")),
        case(F32, 2, 60_000, &factgrass((200, 100), (16, 16), 64, "iid")),
        case(F32, 3000, 2, &factgrass((50, 60), (8, 8), 16, "cyclic")),
        case(F32, 3, 2, &factgrass((9, 9), (9, 9), 1 << 20, "cyclic")),
        case(F32, 2, 130, &tile((1024, 600), 4096)),
        case(Bf16, 40, 3, &tile((150, 170), 4093)),
        // Every coordinate a tile, of layers wide on either side.
        case(F32, 2, 3, &tile((1 << 18, 2), 1)),
        case(Bf16, 2, 1, &tile((2, 1 << 18), 1)),
        // Outputs of 4 MiB, of more rows than are summed together, and of 8 MiB.
        case(F32, 1, 2, &tile((4096, 4100), 1 << 20)),
        case(F32, 2, 1, &tile((4096, 4100), 1 << 20)),
        case(F32, 3, 2, &tile((9, 9), 1 << 21)),
        case(F32, 2, 60_000, &tile((30, 20), 64)),
        case(F32, 3000, 2, &tile((50, 60), 16)),
    ]
}

/// What a call takes, allocated.
struct Call {
    compressor: Compressor,
    case: Case,
    single: Array1<f32>,
    half: Array1<bf16>,
    out: Vec<f32>,
}

impl Call {
    fn new(case: &Case) -> Self {
        let compressor = Compressor::from_spec(Spec::from_json(&case.spec).unwrap()).unwrap();
        let widest = match (compressor.features(), case.values) {
            (_, Values::Same) => 1,
            (Some((d_in, d_out)), _) => d_in.max(d_out),
            (None, _) => compressor.input_dim(),
        };
        let single = Array1::from_shape_fn(widest, |i| (i % 251) as f32 - 125.0);
        Self {
            half: single.mapv(bf16::from_f32),
            single,
            out: vec![f32::NAN; case.examples * compressor.output_dim()],
            case: case.clone(),
            compressor,
        }
    }

    /// Compresses the first `n` examples.
    fn run(&mut self, n: usize, workers: &Workers) {
        let out = &mut self.out[..n * self.compressor.output_dim()];
        match self.compressor.features() {
            None => {
                let shape = Ix2(n, self.compressor.input_dim());
                let rows = array(self.case.values, &self.single, &self.half, shape);
                self.compressor.compress(&rows, out, workers)
            }
            Some((d_in, d_out)) => {
                let factor = |d| {
                    let shape = Ix3(n, self.case.tokens, d);
                    Factor::from(array(self.case.values, &self.single, &self.half, shape))
                };
                let (inputs, grad_outputs) = (factor(d_in), factor(d_out));
                self.compressor
                    .compress_factors(&inputs, &grad_outputs, out, workers)
            }
        }
        .unwrap();
    }
}

/// An array whose rows all are the first of the values.
fn array<'a, D: Dimension>(
    values: Values,
    single: &'a Array1<f32>,
    half: &'a Array1<bf16>,
    shape: D,
) -> Array<'a, D> {
    fn repeat<T, D: Dimension>(row: &Array1<T>, step: usize, shape: D) -> ArrayView<'_, T, D> {
        let mut strides = D::zeros(shape.ndim());
        strides[shape.ndim() - 1] = step;
        ArrayView::from_shape(shape.strides(strides), row.as_slice().unwrap()).unwrap()
    }
    match values {
        Values::F32 => Array::F32(repeat(single, 1, shape)),
        Values::Bf16 => Array::Bf16(repeat(half, 1, shape)),
        Values::Same => Array::F32(repeat(single, 0, shape)),
    }
}

/// The most that live bytes grew by while `run` ran.
fn growth(run: impl FnOnce()) -> usize {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    PEAK.load(Relaxed) - before
}

/// On a thread of its own, which holds no buffers yet.
fn on_a_new_thread(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

#[test]
fn no_call_takes_more_than_stated_beyond_its_inputs_and_outputs() {
    let _alone = alone();
    let before = LIVE.load(Relaxed);
    let mut failures = String::new();
    for case in cases() {
        let mut call = Call::new(&case);
        // What is drawn once and kept, the masks' indices, is no part of a call.
        on_a_new_thread(|| call.run(1, &Workers::serial()));
        for threads in [1, 2] {
            on_a_new_thread(|| {
                let workers = Workers::with_threads(threads);
                let grown = growth(|| call.run(case.examples, &workers));
                if grown > threads * MOST_BYTES {
                    failures += &format!("{threads} threads, {grown} bytes: {case:?}\n");
                }
            });
        }
    }
    assert!(failures.is_empty(), "{failures}");
    // The pool's threads, which stay, hold no more either, whatever they did.
    let held = LIVE.load(Relaxed) - before;
    assert!(held <= 2 * MOST_BYTES + (1 << 20), "{held}");
}

#[test]
fn a_second_call_allocates_nothing() {
    let _alone = alone();
    let mut failures = String::new();
    for case in cases() {
        on_a_new_thread(|| {
            let mut call = Call::new(&case);
            let workers = Workers::serial();
            call.run(case.examples, &workers);
            let first = call.out.clone();
            call.out.fill(f32::NAN);
            let before = ALLOCATIONS.get();
            call.run(case.examples, &workers);
            let made = ALLOCATIONS.get() - before;
            if made > 0 {
                failures += &format!("{made} allocations: {case:?}\n");
            }
            assert!(call.out == first, "{case:?}");
        });
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_counter_counts() {
    let _alone = alone();
    let before = ALLOCATIONS.get();
    let grown = growth(|| drop(black_box(vec![0u8; 1 << 24])));
    assert!(grown >= 1 << 24);
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
