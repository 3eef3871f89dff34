//! Heavy calls: run without the GIL, and stopped by Ctrl-C.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use grass_core::parallel::Workers;
use pyo3::prelude::*;

use crate::error::PyError;

/// Fewer operations than this end before a finger leaves the keyboard: nobody watches for signals meanwhile.
const WATCHED: usize = 1 << 25;

/// How often signals are looked for.
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs `call` without the GIL, in this thread. But a call of many `operations` from Python's main thread, which alone
/// may run signal handlers, runs in another one, while this one watches.
///
/// # Errors
/// What `call` returns, or what a signal handler raised.
pub fn detached<T: Send, E: Into<PyError> + Send>(
    py: Python<'_>,
    operations: usize,
    call: impl FnOnce(&Workers) -> Result<T, E> + Send,
) -> PyResult<T> {
    let workers = Workers::current();
    let outcome = if operations < WATCHED || !is_main_thread(py)? {
        py.detach(|| call(&workers))
    } else {
        watched(py, &workers, call)?
    };
    outcome.map_err(|error| error.into().into())
}

/// Whether this is the thread that runs Python's signal handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    threading.call_method0("get_ident")?.eq(main)
}

/// Runs `call` in another thread, while this one lets signal handlers run and cancels the call when one of them raises.
fn watched<R: Send>(
    py: Python<'_>,
    workers: &Workers,
    call: impl FnOnce(&Workers) -> R + Send,
) -> PyResult<R> {
    let mut raised = None;
    let outcome = py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let worker = scope.spawn(move || {
                let outcome = call(workers);
                // Only wakes the watcher: the outcome comes from joining.
                sender.send(()).ok();
                outcome
            });
            while receiver.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = Python::attach(|py| py.check_signals()) {
                    workers.cancel_flag().store(true, Ordering::Relaxed);
                    raised = Some(error);
                    break;
                }
            }
            worker.join()
        })
    });
    match (raised, outcome) {
        (Some(error), _) => Err(error),
        (None, Ok(outcome)) => Ok(outcome),
        (None, Err(panic)) => std::panic::resume_unwind(panic),
    }
}
