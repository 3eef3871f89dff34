#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use grass_store::fuzzing;
use libfuzzer_sys::fuzz_target;

/// In memory where the system has such a place: a store is written for every input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let folder = parent.join(format!("grass-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a place for temporary files");
    folder
});

fuzz_target!(|bytes: &[u8]| fuzzing::store(&FOLDER, bytes));
