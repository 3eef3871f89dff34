//! Threads: the calling one, and helpers from one pool for the process, handed explicitly to every heavy call.
//!
//! Work is cut into tasks by its own size, never by the number of threads, and every task writes
//! its own part of the output. So a result has the same bits however many threads computed it.
//!
//! The caller works like its helpers, and a call takes only helpers that are idle. So no call waits for the work of
//! another one, however many threads of the program make calls at once.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use rayon::ThreadPool;

use crate::error::{Error, Result};
use crate::processors::Processors;
use crate::progress::Progress;

/// Threads asked for by [`set_num_threads`]; 0 means as many as the machine offers.
static REQUESTED: AtomicUsize = AtomicUsize::new(0);

/// The pool, with the process that started it: the threads of a pool do not survive a fork.
static POOL: ArcSwapOption<ProcessPool> = ArcSwapOption::const_empty();

thread_local! {
    /// Whether this thread runs a task: what a task calls runs in its own thread.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Threads that help callers.
struct ProcessPool {
    process: u32,
    helpers: usize,
    /// Helpers without work. Only so many tasks are ever given to the pool, so each starts at once.
    idle: AtomicUsize,
    pool: ThreadPool,
}

impl ProcessPool {
    /// A helper for the caller, if one is idle.
    fn hire(&self) -> Option<Hired<'_>> {
        let relaxed = Ordering::Relaxed;
        let fewer = |idle: usize| idle.checked_sub(1);
        let hired = self.idle.fetch_update(relaxed, relaxed, fewer);
        hired.ok().map(|_| Hired { pool: self })
    }
}

/// The claim on one helper, given back when dropped.
struct Hired<'a> {
    pool: &'a ProcessPool,
}

impl Drop for Hired<'_> {
    fn drop(&mut self) {
        self.pool.idle.fetch_add(1, Ordering::Relaxed);
    }
}

/// The most threads that a pool may have: more only fight over the cores of any machine.
pub const MOST_THREADS: usize = 1024;

/// Sets how many threads heavy calls use from now on, at most [`MOST_THREADS`]; 0 means as many as the machine offers.
pub fn set_num_threads(threads: usize) {
    REQUESTED.store(threads.min(MOST_THREADS), Ordering::Relaxed);
}

/// How many threads heavy calls use.
pub fn num_threads() -> usize {
    // Asking the operating system takes longer than compressing a small vector.
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    match REQUESTED.load(Ordering::Relaxed) {
        0 => *AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)),
        threads => threads,
    }
}

/// The pool of this process with so many helpers, started when needed; `None` where no thread can be started.
fn process_pool(helpers: usize) -> Option<Arc<ProcessPool>> {
    let process = std::process::id();
    let current = POOL.load_full();
    if let Some(pool) = &current
        && pool.process == process
        && pool.helpers == helpers
    {
        return current;
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(helpers)
        .thread_name(|index| format!("grass-{index}"))
        .build()
        .ok()?;
    let fresh = Arc::new(ProcessPool {
        process,
        helpers,
        idle: AtomicUsize::new(helpers),
        pool,
    });
    if let Some(old) = POOL.swap(Some(Arc::clone(&fresh)))
        && old.process != process
    {
        // Its threads live in the parent process, and with them what may hold its locks: dropping it could wait for ever.
        std::mem::forget(old);
    }
    if let Some(old) = current
        && old.process != process
    {
        std::mem::forget(old);
    }
    Some(fresh)
}

/// The threads that a heavy call may use, the flag by which its owner stops it, and how far it is.
#[derive(Debug, Clone)]
pub struct Workers {
    threads: usize,
    cancelled: Arc<AtomicBool>,
    progress: Arc<Progress>,
}

impl Workers {
    /// As many threads as [`num_threads`] says.
    pub fn current() -> Self {
        Self::with_threads(num_threads())
    }

    /// `threads` threads, at least one.
    pub fn with_threads(threads: usize) -> Self {
        Self {
            threads: threads.max(1),
            cancelled: Arc::default(),
            progress: Arc::default(),
        }
    }

    /// The calling thread alone.
    pub fn serial() -> Self {
        Self::with_threads(1)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// These workers, restricted to the calling thread when `operations` is too little to share.
    #[must_use]
    pub fn for_operations(&self, operations: usize) -> Self {
        let mut workers = self.clone();
        if operations < PARALLEL_THRESHOLD {
            workers.threads = 1;
        }
        workers
    }

    /// The flag that stops a running call: set it, and the call returns [`Error::Interrupted`] soon.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// How far the call is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Fails when the call was cancelled. Heavy loops ask at least every 50 ms or so.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Runs `task` once for every item, in the calling thread and as many idle helpers as there are threads and items.
    /// Each takes the next item when it is done with one, and looks at the cancel flag before. Inside a task, all runs
    /// in its own thread.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or the first error of a task; no item is begun after it.
    ///
    /// # Panics
    /// If a task does, once the tasks that had begun are over.
    pub fn for_each<I, E>(
        &self,
        items: I,
        task: impl Fn(I::Item) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E>
    where
        I: IntoIterator<IntoIter: Send>,
        E: From<Error> + Send,
    {
        let mut items = items.into_iter();
        let task = &|item| {
            self.check()?;
            task(item)
        };
        let tasks = items.size_hint().1.unwrap_or(usize::MAX);
        let Some(pool) = self.pool_for(tasks) else {
            return items.try_for_each(task);
        };
        let mut missing = (self.threads - 1).min(tasks - 1);
        let queue = Queue::new(items);
        let processors = Processors::new();
        processors.take();
        pool.pool.in_place_scope(|scope| {
            queue.work(task, || {
                // Again before every item: the helpers of other callers become idle meanwhile.
                while missing > 0
                    && let Some(hired) = pool.hire()
                {
                    missing -= 1;
                    let (queue, processors) = (&queue, &processors);
                    scope.spawn(move |_| {
                        let _hired = hired;
                        processors.take();
                        queue.work(task, || ());
                    });
                }
            });
        });
        queue.outcome()
    }

    /// Runs `task` once for every `length` values of `values` (the last ones may be fewer), with the number of the chunk,
    /// like [`Self::for_each`].
    ///
    /// # Errors
    /// [`Error::Interrupted`], or an error of a task.
    ///
    /// # Panics
    /// If `length` is zero.
    pub fn for_each_chunk<E>(
        &self,
        values: &mut [f32],
        length: usize,
        task: impl Fn(usize, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E>
    where
        E: From<Error> + Send,
    {
        let chunks = values.chunks_mut(length).enumerate();
        self.for_each(chunks, |(index, chunk)| task(index, chunk))
    }

    /// The pool, where there are several threads and several tasks for them.
    fn pool_for(&self, tasks: usize) -> Option<Arc<ProcessPool>> {
        (self.threads > 1 && tasks > 1 && !IN_TASK.get())
            .then(|| process_pool(self.threads - 1))
            .flatten()
    }
}

/// Fewer operations than this are done by the calling thread. Measured with an SJLT of two rows: two threads take 1.5
/// times as long as one for 2^20 operations, 0.91 times for 2^21 (60 us), 0.82 times for 2^22 and 0.63 times for 2^23.
pub const PARALLEL_THRESHOLD: usize = 1 << 21;

/// The items of one call, which its threads share.
struct Queue<I, E> {
    rest: Mutex<ControlFlow<Option<E>, I>>,
}

impl<I: Iterator, E> Queue<I, E> {
    fn new(items: I) -> Self {
        Self {
            rest: Mutex::new(ControlFlow::Continue(items)),
        }
    }

    /// Takes one item after the other, calls `before` and runs `task` on it, until there is none or the call has failed.
    fn work(&self, task: impl Fn(I::Item) -> std::result::Result<(), E>, mut before: impl FnMut()) {
        let _turn = Turn::begin(self);
        while let Some(item) = self.next() {
            before();
            if let Err(error) = task(item) {
                self.close(Some(error));
            }
        }
    }

    fn next(&self) -> Option<I::Item> {
        match &mut *self.lock() {
            ControlFlow::Continue(items) => items.next(),
            ControlFlow::Break(_) => None,
        }
    }

    /// Lets no thread take another item; the first reason stands.
    fn close(&self, error: Option<E>) {
        let mut rest = self.lock();
        if rest.is_continue() {
            *rest = ControlFlow::Break(error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ControlFlow<Option<E>, I>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(self) -> std::result::Result<(), E> {
        let rest = self
            .rest
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        rest.break_value().flatten().map_or(Ok(()), Err)
    }
}

/// A thread's work on a queue: ends well, or closes the queue where a task panics.
struct Turn<'a, I: Iterator, E> {
    queue: &'a Queue<I, E>,
}

impl<'a, I: Iterator, E> Turn<'a, I, E> {
    fn begin(queue: &'a Queue<I, E>) -> Self {
        IN_TASK.set(true);
        Self { queue }
    }
}

impl<I: Iterator, E> Drop for Turn<'_, I, E> {
    fn drop(&mut self) {
        IN_TASK.set(false);
        if std::thread::panicking() {
            self.queue.close(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_item_is_done_once(workers: &Workers, items: usize) {
        let mut done = vec![0u32; items];
        let task = |slot: &mut u32| -> Result<()> {
            *slot += 1;
            Ok(())
        };
        workers.for_each(&mut done, task).unwrap();
        assert!(done.iter().all(|&count| count == 1));
    }

    #[test]
    fn every_item_is_done_once_for_any_number_of_threads() {
        for threads in [1, 2, 5] {
            for items in [0, 1, 2, 1000] {
                every_item_is_done_once(&Workers::with_threads(threads), items);
            }
        }
    }

    #[test]
    fn every_chunk_is_done_once_under_its_number_for_any_number_of_threads() {
        for threads in [1, 2, 5] {
            for (length, chunks) in [(7, 143), (1000, 1), (2000, 1)] {
                let mut done = vec![0.0; 1000];
                let seen = AtomicUsize::new(0);
                Workers::with_threads(threads)
                    .for_each_chunk(&mut done, length, |index, chunk| -> Result<()> {
                        seen.fetch_add(1, Ordering::Relaxed);
                        for (offset, value) in chunk.iter_mut().enumerate() {
                            *value += (index * length + offset) as f32;
                        }
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(seen.into_inner(), chunks);
                assert!(done.iter().enumerate().all(|(i, &value)| value == i as f32));
            }
        }
    }

    #[test]
    fn a_call_cancelled_before_runs_nothing() {
        let workers = Workers::with_threads(2);
        workers.cancel_flag().store(true, Ordering::Relaxed);
        let outcome = workers.for_each([1, 2, 3], |_| -> Result<()> { panic!("must not run") });
        assert_eq!(outcome, Err(Error::Interrupted));
        let outcome = workers.for_each_chunk(&mut [0.0; 9], 2, |_, _| -> Result<()> {
            panic!("must not run")
        });
        assert_eq!(outcome, Err(Error::Interrupted));
    }

    /// Runs `task` on endless items, which it must stop by itself.
    fn endless(workers: &Workers, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        workers.for_each(0.., task)
    }

    #[test]
    fn a_running_call_stops_when_cancelled() {
        for threads in [1, 2, 5] {
            let workers = Workers::with_threads(threads);
            let cancelled = workers.cancel_flag();
            let outcome = endless(&workers, |item| {
                cancelled.fetch_or(item == 100, Ordering::Relaxed);
                Ok(())
            });
            assert_eq!(outcome, Err(Error::Interrupted));
        }
    }

    #[test]
    fn the_error_of_a_task_stops_the_call() {
        for threads in [1, 2, 5] {
            let outcome = endless(&Workers::with_threads(threads), |item| match item {
                100 => Err(Error::spec("op", "argument", "less", item)),
                _ => Ok(()),
            });
            assert_eq!(outcome, Err(Error::spec("op", "argument", "less", 100)));
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_next_call_works() {
        for (threads, panics) in [(1, [false].as_slice()), (3, &[false, true])] {
            let workers = Workers::with_threads(threads);
            for &helpers_panic in panics {
                let caller = std::thread::current().id();
                let outcome = std::panic::catch_unwind(|| {
                    endless(&workers, |_| {
                        let helps = std::thread::current().id() != caller;
                        assert!(helps != helpers_panic, "on purpose");
                        Ok(())
                    })
                });
                let message = *outcome.unwrap_err().downcast::<&str>().unwrap();
                assert_eq!(message, "on purpose");
                every_item_is_done_once(&workers, 100);
            }
        }
    }

    #[test]
    fn a_call_inside_a_task_runs_in_its_thread() {
        let workers = Workers::with_threads(3);
        let inside = |_| {
            let thread = std::thread::current().id();
            workers.for_each(0..10, |_| -> Result<()> {
                assert_eq!(std::thread::current().id(), thread);
                Ok(())
            })
        };
        workers.for_each(0..100, inside).unwrap();
        every_item_is_done_once(&workers, 100);
    }

    #[test]
    fn caller_and_helpers_work_at_the_same_time() {
        // Numbers that no other test has: nobody else may take these helpers meanwhile.
        for threads in [4, 6] {
            // Each waits in its task for all others.
            let all = std::sync::Barrier::new(threads);
            let task = |_| -> Result<()> {
                all.wait();
                Ok(())
            };
            let workers = Workers::with_threads(threads);
            workers.for_each(0..threads, task).unwrap();
        }
    }

    #[test]
    fn a_call_does_not_wait_for_the_helpers_of_another() {
        // A number that no other test has: nobody else may take this call's helpers.
        let workers = Workers::with_threads(7);
        let (begun, done) = (std::sync::Barrier::new(8), std::sync::Barrier::new(8));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let task = |_| -> Result<()> {
                    begun.wait();
                    done.wait();
                    Ok(())
                };
                workers.for_each(0..7, task).unwrap();
            });
            // Now the other thread's call has all helpers, until this call is over.
            begun.wait();
            every_item_is_done_once(&workers, 100);
            done.wait();
        });
    }
}
