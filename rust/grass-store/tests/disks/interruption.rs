//! Writers that are stopped, and go on with what is in the memory of the same running system.

use std::path::Path;
use std::sync::Arc;

use grass_store::Disk;

use super::faulty::{Answer, EIO, FaultyDisk, failing_once, quick_disk};
use super::recorder::Recorder;

/// How a writer is interrupted at one of its calls.
#[derive(Debug, Clone, Copy)]
pub enum Interruption {
    /// It is killed; what it wrote is still in the system's memory.
    Kill,
    /// The call fails; a sync that does takes with it what it should have made durable.
    Failure,
}

impl Interruption {
    /// A recorder, and the disk on which the writer is interrupted.
    pub fn at(&self, number: usize, root: &Path) -> (Recorder, FaultyDisk, Arc<dyn Disk>) {
        match self {
            Self::Kill => {
                let recorder = Recorder::new(quick_disk(), root);
                let killed =
                    FaultyDisk::new(recorder.shared(), move |call| match call.number >= number {
                        true => Answer::Fail(EIO),
                        false => Answer::Do,
                    });
                (recorder, killed.clone(), killed.shared())
            }
            Self::Failure => {
                let failing = failing_once(quick_disk(), number, EIO);
                let recorder = Recorder::new(failing.shared(), root);
                (recorder.clone(), failing, recorder.shared())
            }
        }
    }
}
