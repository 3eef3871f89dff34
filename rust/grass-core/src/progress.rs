//! How far a long call is, told to whoever waits for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a long call is, in units of its own choice.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// Adds to what there is to do.
    pub fn add_total(&self, units: u64) {
        self.total.fetch_add(units, Ordering::Relaxed);
    }

    /// Adds to what is done.
    pub fn add_done(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// What is done, and what there is to do as far as it is known.
    pub fn get(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.done), load(&self.total))
    }
}
