//! A `.npy` file (version 1.0 of NumPy's format) while it is written.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use grass_store::{Disk, DiskFile};

use crate::error::{Error, Result};

/// Data of a `.npy` file begin at a multiple of so many bytes.
const ALIGNMENT: usize = 64;

/// One `.npy` file while it is written.
pub(super) struct Part {
    /// Its name when it is finished.
    pub(super) path: PathBuf,
    header: Vec<u8>,
    /// Bytes of all of it.
    length: u64,
    /// `None` when all was written before.
    file: Option<Box<dyn DiskFile>>,
}

impl Part {
    pub(super) fn new(path: PathBuf, dtype: &str, shape: &[u64], item_bytes: u64) -> Self {
        let header = npy_header(dtype, shape);
        let items = shape
            .iter()
            .fold(item_bytes, |all, &length| all.saturating_mul(length));
        Self {
            path,
            length: items.saturating_add(header.len() as u64),
            header,
            file: None,
        }
    }

    /// Its name until then.
    pub(super) fn unfinished(&self) -> PathBuf {
        with_suffix(&self.path, ".part")
    }

    /// Whether the file at `path` has the length and the header of this one.
    pub(super) fn fits(&self, path: &Path) -> bool {
        let read = || -> io::Result<bool> {
            let mut file = File::open(path)?;
            let mut header = vec![0; self.header.len()];
            let length = file.metadata()?.len();
            file.read_exact(&mut header)?;
            Ok(length == self.length && header == self.header)
        };
        read().unwrap_or(false)
    }

    pub(super) fn create(&mut self, disk: &dyn Disk) -> Result<()> {
        let path = self.unfinished();
        let file = disk.create(&path).map_err(Error::file("create", &path))?;
        self.begin(file)
    }

    /// Goes on with the file of an earlier call.
    pub(super) fn open(&mut self, disk: &dyn Disk) -> Result<()> {
        let path = self.unfinished();
        let file = disk.open(&path).map_err(Error::file("open", &path))?;
        // What it begins with may be in memory alone, where that call was killed or a sync failed.
        self.begin(file)
    }

    fn begin(&mut self, file: Box<dyn DiskFile>) -> Result<()> {
        file.write_all_at(&self.header, 0)
            .and_then(|()| file.set_length(self.length))
            .map_err(Error::file("write", &self.unfinished()))?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes some bytes of the numbers, counted from the first one.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let Some(file) = &self.file else {
            unreachable!("nothing is missing of a file that was written");
        };
        file.write_all_at(bytes, self.header.len() as u64 + offset)
            .map_err(Error::file("write", &self.unfinished()))
    }

    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.file.as_ref().map_or(Ok(()), |file| file.sync());
        synced.map_err(Error::file("write", &self.unfinished()))
    }
}

/// `path` with something more at the end of its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The header of a file of little-endian numbers of a type (such as `<f4`) in C order.
fn npy_header(dtype: &str, shape: &[u64]) -> Vec<u8> {
    let lengths: Vec<String> = shape.iter().map(|length| format!("{length},")).collect();
    let lengths = lengths.join(" ");
    let fields = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({lengths}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // Two bytes of length before the fields, a newline after the spaces that fill up.
    let total = (header.len() + 2 + fields.len() + 1).next_multiple_of(ALIGNMENT);
    let length = (total - header.len() - 2) as u16;
    header.extend(length.to_le_bytes());
    header.extend(fields.bytes());
    header.resize(total - 1, b' ');
    header.push(b'\n');
    header
}
