//! Windows of files in memory, one chunk at a time.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// A read-only view of a part of a file. It takes address space while it lives, and no memory
/// that the system cannot take back at any time.
///
/// The file's length is compared before it is mapped. A file that another process cuts short
/// *while it is mapped* cannot be guarded against: touching a page past the new end kills this
/// process with SIGBUS. Writers of this library only ever cut off rows that no reader was told
/// of, and replace files whole, so that a mapped window stays what it was.
#[derive(Debug)]
pub(crate) struct Window {
    map: Mmap,
}

impl Window {
    /// Maps `length` bytes from `offset`; `None` if the file is too short for that.
    pub(crate) fn map(file: &File, offset: u64, length: usize) -> io::Result<Option<Self>> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > i64::MAX as u64)
            || file.metadata()?.len() < offset + length as u64
        {
            return Ok(None);
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(length);
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
        // SAFETY: the map is private to this type, read-only, and given out as `&[u8]` tied to its
        // life. Its bytes are plain and are checked before use, so other processes that write to
        // the file can make the data wrong but not the program; cutting the file is the case that
        // the type's documentation tells of.
        let map = unsafe { options.map(file)? };
        Ok(Some(Self { map }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
