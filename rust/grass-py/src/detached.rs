//! Heavy calls: run without the GIL, and stopped by Ctrl-C.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use grass_core::parallel::Workers;
use pyo3::prelude::*;

use crate::error::PyError;

/// Fewer operations than this end before a finger leaves the keyboard: no second thread is started to watch for signals.
const WATCHED: usize = 1 << 25;

/// How often signals are looked for.
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs `call` without the GIL. A call of many `operations` runs in a thread of its own, while this one lets Python's
/// signal handlers run and cancels the call when one of them raises.
///
/// # Errors
/// What `call` returns, or what a signal handler raised.
pub fn detached<T: Send, E: Into<PyError> + Send>(
    py: Python<'_>,
    operations: usize,
    call: impl FnOnce(&Workers) -> Result<T, E> + Send,
) -> PyResult<T> {
    let workers = Workers::current();
    if operations < WATCHED {
        return py
            .detach(|| call(&workers))
            .map_err(|error| error.into().into());
    }
    let cancelled = workers.cancel_flag();
    let mut raised = None;
    let outcome = py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let worker = scope.spawn(move || {
                let outcome = call(&workers);
                // Only wakes the watcher: the outcome comes from joining.
                sender.send(()).ok();
                outcome
            });
            while receiver.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = Python::attach(|py| py.check_signals()) {
                    cancelled.store(true, Ordering::Relaxed);
                    raised = Some(error);
                    break;
                }
            }
            worker.join()
        })
    });
    match (raised, outcome) {
        (Some(error), _) => Err(error),
        (None, Ok(outcome)) => outcome.map_err(|error| error.into().into()),
        (None, Err(panic)) => std::panic::resume_unwind(panic),
    }
}
