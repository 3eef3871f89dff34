//! Heavy calls: run without the GIL, stopped by Ctrl-C, and watched by a progress bar.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use grass_core::parallel::Workers;
use pyo3::prelude::*;

use crate::error::PyError;

/// Fewer operations than this end before a finger leaves the keyboard: nobody watches for signals meanwhile.
const WATCHED: usize = 1 << 25;

/// How often signals are looked for, and progress is told.
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
        watched(py, &workers, |py| py.check_signals(), call)?
    };
    outcome.map_err(|error| error.into().into())
}

/// Like [`detached`] for a call of many operations. `progress`, where there is one, is called with what is done and
/// what there is to do, also in a thread that is not the main one, and once more at the end; what it raises stops the call.
///
/// # Errors
/// What `call` returns, or what a signal handler or `progress` raised.
pub fn detached_with_progress<T: Send, E: Into<PyError> + Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    call: impl FnOnce(&Workers) -> Result<T, E> + Send,
) -> PyResult<T> {
    let Some(progress) = progress else {
        return detached(py, usize::MAX, call);
    };
    let workers = Workers::current();
    let told = progress.clone().unbind();
    let tell = |py: Python<'_>| told.call1(py, workers.progress().get()).map(drop);
    // Looking for signals does nothing in a thread that is not the main one.
    let watch = |py: Python<'_>| py.check_signals().and_then(|()| tell(py));
    let outcome = watched(py, &workers, watch, call)?;
    let outcome = outcome.map_err(|error| PyErr::from(error.into()))?;
    tell(py)?;
    Ok(outcome)
}

/// Whether this is the thread that runs Python's signal handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    threading.call_method0("get_ident")?.eq(main)
}

/// Runs `call` in another thread, while this one lets `watch` run and cancels the call when it raises.
fn watched<R: Send>(
    py: Python<'_>,
    workers: &Workers,
    watch: impl Fn(Python<'_>) -> PyResult<()> + Sync + Send,
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
                if let Err(error) = Python::attach(&watch) {
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
