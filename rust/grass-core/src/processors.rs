//! Which processors the threads of one call run on: different ones.
//!
//! A thread that is woken should begin on an idle processor. To a kernel in a virtual machine an idle processor may look
//! taken, and then the thread begins on its waker's and both share it, for milliseconds. So a thread that finds itself on
//! the processor of another one of its call moves.

/// The processors of a call's threads.
#[cfg(target_os = "linux")]
pub(crate) struct Processors {
    taken: std::sync::Mutex<rustix::thread::CpuSet>,
}

#[cfg(target_os = "linux")]
impl Processors {
    pub(crate) fn new() -> Self {
        Self {
            taken: std::sync::Mutex::new(rustix::thread::CpuSet::new()),
        }
    }

    /// Takes the calling thread's processor, another one than those that are taken where it may run on one. Afterwards it
    /// may run wherever it could before.
    pub(crate) fn take(&self) {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

        let mut taken = self
            .taken
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if is_set(&taken, sched_getcpu())
            && let Ok(allowed) = sched_getaffinity(None)
        {
            let mut free = allowed;
            for processor in (0..CpuSet::MAX_CPU).filter(|&processor| taken.is_set(processor)) {
                free.unset(processor);
            }
            // Where this is forbidden, the call is slower, not wrong.
            if free.count() > 0 && sched_setaffinity(None, &free).is_ok() {
                sched_setaffinity(None, &allowed).ok();
            }
        }
        let here = sched_getcpu();
        if here < CpuSet::MAX_CPU {
            taken.set(here);
        }
    }
}

#[cfg(target_os = "linux")]
fn is_set(set: &rustix::thread::CpuSet, processor: usize) -> bool {
    processor < rustix::thread::CpuSet::MAX_CPU && set.is_set(processor)
}

/// The processors of a call's threads: other systems place them.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Processors;

#[cfg(not(target_os = "linux"))]
impl Processors {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn take(&self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::thread::{sched_getaffinity, sched_getcpu};

    use super::*;

    #[test]
    fn a_thread_moves_away_from_a_taken_processor_and_stays_free_to_move() {
        let allowed = sched_getaffinity(None).unwrap();
        let processors = Processors::new();
        processors.taken.lock().unwrap().set(sched_getcpu());
        let before = processors.taken.lock().unwrap().count();
        processors.take();
        let after = processors.taken.lock().unwrap().count();
        assert_eq!(after - before, u32::from(allowed.count() > 1));
        let still = sched_getaffinity(None).unwrap();
        assert!((0..1024).all(|processor| still.is_set(processor) == allowed.is_set(processor)));
    }
}
