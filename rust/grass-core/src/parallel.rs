//! Threads: one pool for the process, handed explicitly to every heavy call.
//!
//! Work is cut into tasks by its own size, never by the number of threads, and every task writes
//! its own part of the output. So a result has the same bits however many threads computed it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Threads asked for by [`set_num_threads`]; 0 means as many as the machine offers.
static REQUESTED: AtomicUsize = AtomicUsize::new(0);

/// The pool, with the process that started it: the threads of a pool do not survive a fork.
static POOL: ArcSwapOption<ProcessPool> = ArcSwapOption::const_empty();

struct ProcessPool {
    process: u32,
    threads: usize,
    pool: ThreadPool,
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

/// The pool of this process with `threads` threads, started when needed; `None` where no thread can be started.
fn process_pool(threads: usize) -> Option<Arc<ProcessPool>> {
    let process = std::process::id();
    let current = POOL.load_full();
    if let Some(pool) = &current
        && pool.process == process
        && pool.threads == threads
    {
        return current;
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("grass-{index}"))
        .build()
        .ok()?;
    let fresh = Arc::new(ProcessPool {
        process,
        threads,
        pool,
    });
    if let Some(old) = POOL.swap(Some(Arc::clone(&fresh)))
        && old.process != process
    {
        // Its threads live in the parent process: dropping it here would wait for them for ever.
        std::mem::forget(old);
    }
    if let Some(old) = current
        && old.process != process
    {
        std::mem::forget(old);
    }
    Some(fresh)
}

/// The threads that a heavy call may use, and the flag by which its owner stops it.
#[derive(Debug, Clone)]
pub struct Workers {
    threads: usize,
    cancelled: Arc<AtomicBool>,
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

    /// Runs `task` once for every item, on the pool when there is more than one thread and item.
    /// Between items it looks at the cancel flag.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or an error of a task.
    pub fn for_each<T, E>(
        &self,
        items: Vec<T>,
        task: impl Fn(T) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E>
    where
        T: Send,
        E: From<Error> + Send,
    {
        let checked = |item| {
            self.check()?;
            task(item)
        };
        match self.pool_for(items.len()) {
            Some(shared) => shared
                .pool
                .install(|| items.into_par_iter().try_for_each(checked)),
            None => items.into_iter().try_for_each(checked),
        }
    }

    /// Runs `task` once for every `length` values of `values` (the last ones may be fewer), with the number of the chunk,
    /// like [`Self::for_each`]; the calling thread alone allocates nothing.
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
        let checked = |(index, chunk)| {
            self.check()?;
            task(index, chunk)
        };
        match self.pool_for(values.len().div_ceil(length)) {
            Some(shared) => shared.pool.install(|| {
                let chunks = values.par_chunks_mut(length).enumerate();
                chunks.try_for_each(checked)
            }),
            None => {
                let mut chunks = values.chunks_mut(length).enumerate();
                chunks.try_for_each(checked)
            }
        }
    }

    /// The pool, where there are several threads and several tasks for them.
    fn pool_for(&self, tasks: usize) -> Option<Arc<ProcessPool>> {
        (self.threads > 1 && tasks > 1)
            .then(|| process_pool(self.threads))
            .flatten()
    }
}

/// Fewer operations than this are done by the calling thread: waking the pool would take longer.
pub const PARALLEL_THRESHOLD: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_for_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut done = vec![0u32; 1000];
            Workers::with_threads(threads)
                .for_each(done.iter_mut().collect(), |slot| -> Result<()> {
                    *slot += 1;
                    Ok(())
                })
                .unwrap();
            assert!(done.iter().all(|&count| count == 1));
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
    fn a_cancelled_call_stops_with_interrupted() {
        let workers = Workers::with_threads(2);
        workers.cancel_flag().store(true, Ordering::Relaxed);
        let outcome = workers.for_each(vec![1, 2, 3], |_| -> Result<()> { panic!("must not run") });
        assert_eq!(outcome, Err(Error::Interrupted));
        let outcome = workers.for_each_chunk(&mut [0.0; 9], 2, |_, _| -> Result<()> {
            panic!("must not run")
        });
        assert_eq!(outcome, Err(Error::Interrupted));
    }
}
