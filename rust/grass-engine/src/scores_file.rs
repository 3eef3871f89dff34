//! All scores of a store in a `.npy` file: written as they are made, never all in memory, and
//! continued where an earlier call was stopped.
//!
//! ```text
//! scores.npy         (queries, rows) float32, C order
//! scores.ids.npy     (rows,) uint64, the ids of the columns
//! ```
//!
//! Until all is there they are called `scores.npy.part` and `scores.ids.npy.part`, at their full
//! length from the beginning, and `scores.npy.progress` is the journal of what is durable. Scores are
//! synced before the journal says so. A crash, at any moment and with power loss, leaves either a
//! journal whose every record is true, or the finished files.

mod journal;
mod part;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grass_core::parallel::Workers;
use grass_store::{Disk, StoreReader, SystemDisk};
use sha2::{Digest, Sha256};

use crate::chosen::Chosen;
use crate::chunks::check_scorable;
use crate::error::{Error, Result};
use crate::queries::Prepared;
use crate::scorer::{Method, stream};
use crate::sink::Sink;
use journal::{Journal, merge};
use part::{Part, with_suffix};

/// Scores that are gathered in memory before they are written, so that the pieces of a row of the
/// file are long: a few times as much where threads are at different places.
const BAND_BYTES: u64 = 16 << 20;

/// Stored rows whose scores are gathered at most, so that a killed process loses few.
const BAND_ROW_BYTES: u64 = 1 << 30;

/// Numbers that are hashed between two looks at the cancel flag.
const PIECE: usize = 1 << 20;

/// Scores every row of `store`, or [what is chosen](Chosen) of it, for queries of shape (n, width) row-major, into the file `path`, which
/// ends in `.npy`, and, beside it, their ids; [`crate::score`] gives the same bits.
///
/// The same call goes on where an earlier one was stopped, and files that were there are replaced
/// when all scores are written. `damping` counts for [`Method::Influence`] alone. `every` so often
/// what was written is synced, and then survives whatever happens; also when the call fails or is
/// cancelled.
///
/// # Errors
/// Those of [`crate::score`]; [`Error::OtherFile`] where another call's unfinished file is,
/// [`Error::BusyFile`] while another call writes it, [`Error::File`]. What was written stays, and
/// the call may be made again.
pub fn score_to_file<'a>(
    store: impl Into<Chosen<'a>>,
    queries: &[f32],
    method: Method,
    damping: f64,
    path: &Path,
    every: Duration,
    workers: &Workers,
) -> Result<()> {
    let call = Call {
        chosen: store.into(),
        queries,
        method,
        damping,
    };
    let pace = Pace {
        every,
        band_bytes: BAND_BYTES,
        band_row_bytes: BAND_ROW_BYTES,
    };
    call.write(path, pace, &SystemDisk, workers)
}

/// When scores are written and synced.
#[derive(Clone, Copy)]
struct Pace {
    /// Time between two syncs.
    every: Duration,
    /// Scores of a band, in bytes.
    band_bytes: u64,
    /// Stored rows of a band, in bytes.
    band_row_bytes: u64,
}

/// What the scores are of.
struct Call<'a> {
    chosen: Chosen<'a>,
    queries: &'a [f32],
    method: Method,
    damping: f64,
}

impl Call<'_> {
    fn write(&self, path: &Path, pace: Pace, disk: &dyn Disk, workers: &Workers) -> Result<()> {
        let store = self.chosen.store;
        check_scorable(store)?;
        if path.is_dir() {
            let refused = io::ErrorKind::IsADirectory.into();
            return Err(Error::file("create", path)(refused));
        }
        let key = self.key(workers)?;
        let file = ScoresFile::open(store, self.count(), key, path, pace, disk)?;
        let missing = file.missing(store);
        if !missing.is_empty() {
            let outcome = self.stream(missing, &file, workers);
            if let Err(error) = outcome.and(file.keep()) {
                file.drop_if_empty();
                return Err(error);
            }
        }
        file.finish()
    }

    fn stream(
        &self,
        missing: Vec<Range<u64>>,
        file: &ScoresFile<'_>,
        workers: &Workers,
    ) -> Result<()> {
        let dampings = self.dampings();
        let prepared = Prepared::new(&self.chosen, self.queries, self.method, dampings, workers)?;
        let mut missing = missing.into_iter();
        let outcome =
            missing.try_for_each(|rows| stream(self.chosen.store, &prepared, rows, file, workers));
        // Also after an error: what has come was compared with its checksums.
        outcome.and(file.write_bands())
    }

    /// The damping, where the method has one.
    fn dampings(&self) -> &[f64] {
        match self.method {
            Method::Influence => std::slice::from_ref(&self.damping),
            Method::GradDot | Method::GradCos => &[],
        }
    }

    fn count(&self) -> u64 {
        (self.queries.len() / self.chosen.store.layout().width()) as u64
    }

    /// Tells this call from every other one whose scores could differ.
    fn key(&self, workers: &Workers) -> Result<[u8; 32]> {
        let version = concat!("grass_rs ", env!("CARGO_PKG_VERSION"), " scores ");
        let mut digest = Sha256::new_with_prefix(version);
        digest.update(format!("{:?} ", self.method));
        for damping in self.dampings() {
            digest.update(damping.to_le_bytes());
        }
        digest.update(self.chosen.store.fingerprint()?);
        self.chosen.digest(&mut digest);
        digest.update(self.chosen.store.rows().to_le_bytes());
        digest.update(self.count().to_le_bytes());
        for piece in self.queries.chunks(PIECE) {
            workers.check()?;
            let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
            digest.update(bytes);
        }
        Ok(digest.finalize().into())
    }
}

/// Scores of some rows side by side, in memory until all are there.
struct Band {
    rows: Range<u64>,
    /// (queries, rows) float32, little endian.
    values: Vec<u8>,
    /// One u64 a row.
    ids: Vec<u8>,
    /// The rows that are there.
    come: Vec<Range<u64>>,
}

impl Band {
    fn new(rows: Range<u64>, count: u64) -> Self {
        let length = (rows.end - rows.start) as usize;
        Self {
            rows,
            values: vec![0; count as usize * length * size_of::<f32>()],
            ids: vec![0; length * size_of::<u64>()],
            come: Vec::new(),
        }
    }

    fn length(&self) -> usize {
        (self.rows.end - self.rows.start) as usize
    }

    /// Takes its part of the scores of some rows.
    fn take(&mut self, rows: &Range<u64>, ids: &[u64], values: &[f32]) {
        let common = rows.start.max(self.rows.start)..rows.end.min(self.rows.end);
        let here = self.place(&common);
        let there = (common.start - rows.start) as usize..(common.end - rows.start) as usize;
        let length = self.length();
        let (values_here, _) = self.values.as_chunks_mut::<4>();
        let rows_of_values = values_here.chunks_exact_mut(length);
        for (to, from) in rows_of_values.zip(values.chunks_exact(ids.len())) {
            for (to, from) in to[here.clone()].iter_mut().zip(&from[there.clone()]) {
                *to = from.to_le_bytes();
            }
        }
        let (ids_here, _) = self.ids.as_chunks_mut::<8>();
        for (to, from) in ids_here[here].iter_mut().zip(&ids[there]) {
            *to = from.to_le_bytes();
        }
        self.come.push(common);
        merge(&mut self.come);
    }

    /// Where some of its rows are, counted from its first one.
    fn place(&self, rows: &Range<u64>) -> Range<usize> {
        (rows.start - self.rows.start) as usize..(rows.end - self.rows.start) as usize
    }

    fn is_full(&self) -> bool {
        self.come == [self.rows.clone()]
    }
}

/// What the threads of a call share.
struct State {
    /// Those that scores have come for, by number.
    bands: BTreeMap<u64, Band>,
    /// Rows whose scores are written, but not yet durable.
    written: Vec<Range<u64>>,
    synced: Instant,
}

/// The files of one call, on their way.
struct ScoresFile<'a> {
    disk: &'a dyn Disk,
    /// Queries.
    count: u64,
    rows: u64,
    band_rows: u64,
    every: Duration,
    values: Part,
    ids: Part,
    state: Mutex<State>,
    journal: Mutex<Journal>,
}

impl<'a> ScoresFile<'a> {
    /// Goes on with the files of an earlier call of this key, or begins anew.
    fn open(
        store: &StoreReader,
        count: u64,
        key: [u8; 32],
        path: &Path,
        pace: Pace,
        disk: &'a dyn Disk,
    ) -> Result<Self> {
        let rows = store.rows();
        let journal = Journal::open(with_suffix(path, ".progress"), path, rows, disk)?;
        let fitting = (pace.band_bytes / (count.max(1) * size_of::<f32>() as u64))
            .min(pace.band_row_bytes / store.layout().row_bytes() as u64);
        let mut file = Self {
            disk,
            count,
            rows,
            band_rows: fitting.max(1),
            every: pace.every,
            values: Part::new(path.to_path_buf(), "<f4", &[count, rows], 4),
            ids: Part::new(path.with_extension("ids.npy"), "<u8", &[rows], 8),
            state: Mutex::new(State {
                bands: BTreeMap::new(),
                written: Vec::new(),
                synced: Instant::now(),
            }),
            journal: Mutex::new(journal),
        };
        match file.begin(key) {
            Ok(()) => Ok(file),
            Err(error) => {
                file.drop_if_empty();
                Err(error)
            }
        }
    }

    fn begin(&mut self, key: [u8; 32]) -> Result<()> {
        let mut journal = lock(&self.journal);
        let mut parts = [&mut self.values, &mut self.ids];
        let unfinished = parts[0].unfinished();
        if journal.key == Some(key) {
            let begun = |part: &Part| part.fits(&part.unfinished());
            // The ids are named before the values. Values of that name alone may be those of an earlier call.
            let ids = begun(parts[1]) || journal.finished && parts[1].fits(&parts[1].path);
            if begun(parts[0]) && ids {
                return match journal.finished {
                    true => Ok(()),
                    false => parts.iter_mut().try_for_each(|part| part.open(self.disk)),
                };
            }
        } else if !journal.durable.is_empty() && unfinished.exists() {
            return Err(Error::OtherFile { path: unfinished });
        }
        journal.clear()?;
        parts
            .iter_mut()
            .try_for_each(|part| part.create(self.disk))?;
        self.disk
            .sync_folder(folder(&unfinished))
            .map_err(Error::file("sync", folder(&unfinished)))?;
        journal.begin(key)
    }

    /// The rows whose scores are not yet durable, in whole chunks.
    fn missing(&self, store: &StoreReader) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let journal = lock(&self.journal);
        if journal.finished {
            return missing;
        }
        let mut from = 0;
        let end = self.rows..self.rows;
        for durable in journal.durable.iter().chain([&end]) {
            if from < durable.start {
                let mut chunks = store.chunks(from..durable.start);
                if let Some(first) = chunks.next() {
                    let last = chunks.last().unwrap_or_else(|| first.clone());
                    missing.push(first.rows.start..last.rows.end);
                }
            }
            from = durable.end;
        }
        merge(&mut missing);
        missing
    }

    /// The band of a number.
    fn band(&self, number: u64) -> Band {
        let start = number * self.band_rows;
        Band::new(start..self.rows.min(start + self.band_rows), self.count)
    }

    fn write_band(&self, band: &Band) -> Result<()> {
        for rows in &band.come {
            let place = band.place(rows);
            let strips = band.values.chunks_exact(band.length() * size_of::<f32>());
            for (query, strip) in (0..).zip(strips) {
                let strip = &strip[place.start * 4..place.end * 4];
                self.values
                    .write(strip, (query * self.rows + rows.start) * 4)?;
            }
            self.ids
                .write(&band.ids[place.start * 8..place.end * 8], rows.start * 8)?;
            lock(&self.state).written.push(rows.clone());
        }
        Ok(())
    }

    /// Writes what has come so far, whether or not more is to come beside it.
    fn write_bands(&self) -> Result<()> {
        let bands = std::mem::take(&mut lock(&self.state).bands);
        bands.values().try_for_each(|band| self.write_band(band))
    }

    /// Makes what was written durable.
    fn keep(&self) -> Result<()> {
        // Held while syncing: the system tells of a failed sync once, and then all that was written before it is in doubt.
        let mut journal = lock(&self.journal);
        if journal.closed {
            return Ok(());
        }
        let mut written = std::mem::take(&mut lock(&self.state).written);
        if written.is_empty() {
            return Ok(());
        }
        merge(&mut written);
        journal.closed = true;
        self.values.sync()?;
        self.ids.sync()?;
        journal.record(&written)?;
        journal.closed = false;
        Ok(())
    }

    /// Leaves no files of a call that has nothing to show for, so that they are in nobody's way.
    fn drop_if_empty(self) {
        let journal = self.journal.into_inner();
        let journal = journal.unwrap_or_else(PoisonError::into_inner);
        if journal.durable.is_empty() {
            // The error that led here is the one to report.
            for part in [self.values, self.ids] {
                let _ = self.disk.remove(&part.unfinished());
            }
            let _ = journal.remove(self.disk);
        }
    }

    /// Gives the files their names.
    fn finish(self) -> Result<()> {
        let journal = self.journal.into_inner();
        let mut journal = journal.unwrap_or_else(PoisonError::into_inner);
        if !journal.finished {
            journal.finish(self.rows)?;
        }
        // The scores last: where they are, all is there.
        for part in [&self.ids, &self.values] {
            let unfinished = part.unfinished();
            match self.disk.rename(&unfinished, &part.path) {
                // An earlier call has done so.
                Err(error) if error.kind() == io::ErrorKind::NotFound && journal.finished => {}
                renamed => renamed.map_err(Error::file("rename", &unfinished))?,
            }
        }
        let folder = folder(&self.values.path);
        self.disk
            .sync_folder(folder)
            .map_err(Error::file("sync", folder))?;
        journal.remove(self.disk)
    }
}

impl Sink for ScoresFile<'_> {
    fn put(&self, rows: Range<u64>, ids: &[u64], values: &[f32]) -> Result<()> {
        let mut full = Vec::new();
        let due = {
            let mut state = lock(&self.state);
            for number in rows.start / self.band_rows..rows.end.div_ceil(self.band_rows) {
                let band = state
                    .bands
                    .entry(number)
                    .or_insert_with(|| self.band(number));
                band.take(&rows, ids, values);
                if band.is_full() {
                    full.extend(state.bands.remove(&number));
                }
            }
            let due = state.synced.elapsed() >= self.every;
            if due {
                state.synced = Instant::now();
            }
            due
        };
        full.iter().try_for_each(|band| self.write_band(band))?;
        if due { self.keep() } else { Ok(()) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
