//! What the tests let a writer do, from nothing or from whatever an earlier try left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use grass_core::parallel::Workers;
use grass_store::{Disk, Dtype, Error, StoreReader, StoreSpec, StoreWriter, WriterOptions};

use super::faulty::quick_disk;
use super::folder;
use super::recorder::Told;
use crate::common::{NARROW, files, ids, manual, rows, spec, width};

/// Columns whose float32 rows are a little longer than 64 KiB: 8 rows a chunk.
const WIDE: [(&str, u64); 2] = [("conv", 6_385), ("fc", 10_000)];
/// The same for int8 rows, which have a scale a column.
const WIDE_INT8: [(&str, u64); 2] = [("conv", 25_540), ("fc", 40_000)];
/// Bytes of one such chunk, at least.
const CHUNK_BYTES: u64 = 8 * 65_540;

#[derive(Debug, Clone)]
pub enum Step {
    Append(usize),
    Commit,
    /// Finishes, with these ids skipped.
    Finish(&'static [u64]),
}

/// A store to be made.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: &'static str,
    dtype: Dtype,
    columns: &'static [(&'static str, u64)],
    commit_bytes: u64,
    shard_bytes: u64,
    steps: Vec<Step>,
    values: Arc<Vec<f32>>,
}

impl Job {
    fn new(
        name: &'static str,
        dtype: Dtype,
        columns: &'static [(&'static str, u64)],
        steps: Vec<Step>,
    ) -> Self {
        let mut job = Self {
            name,
            dtype,
            columns,
            commit_bytes: u64::MAX,
            shard_bytes: 2 * CHUNK_BYTES,
            steps,
            values: Arc::default(),
        };
        job.values = Arc::new(rows(0, job.rows(), width(&job.spec())));
        job
    }

    /// Short rows, `commits` commits of one to three rows inside one chunk, some ids skipped.
    pub fn narrow(dtype: Dtype, commits: usize) -> Self {
        let commit = |index: usize| [Step::Append(1 + index % 3), Step::Commit];
        let mut steps: Vec<Step> = (0..commits).flat_map(commit).collect();
        // Rows that only finishing commits.
        steps.extend([Step::Append(2), Step::Finish(&[7, 3])]);
        Self::new("narrow", dtype, &NARROW, steps)
    }

    /// Three rows in two commits, so that finishing has no row to write.
    pub fn three_rows() -> Self {
        let steps = vec![
            Step::Append(2),
            Step::Commit,
            Step::Append(1),
            Step::Commit,
            Step::Finish(&[]),
        ];
        Self::new("three rows", Dtype::Float32, &NARROW, steps)
    }

    /// A commit whose records begin in one sector of the log and end in the next.
    pub fn two_sectors_of_log() -> Self {
        let mut steps: Vec<Step> = (0..24)
            .flat_map(|_| [Step::Append(1), Step::Commit])
            .collect();
        steps.extend([Step::Append(30), Step::Finish(&[])]);
        Self {
            shard_bytes: u64::MAX,
            ..Self::new("two sectors of log", Dtype::Float32, &WIDE, steps)
        }
    }

    /// Commits inside a chunk, across chunks and across shards of two chunks.
    pub fn chunks_and_shards() -> Self {
        let commits = [3, 5, 7, 4, 15];
        let mut steps: Vec<Step> = commits
            .into_iter()
            .flat_map(|count| [Step::Append(count), Step::Commit])
            .collect();
        steps.push(Step::Finish(&[1]));
        Self::new("chunks and shards", Dtype::Float32, &WIDE, steps)
    }

    /// The writer commits by itself, by bytes; int8 rows; a shard is one chunk.
    pub fn commits_by_bytes() -> Self {
        let steps = vec![
            Step::Append(5),
            Step::Append(5),
            Step::Append(1),
            Step::Finish(&[]),
        ];
        Self {
            commit_bytes: 3 * 65_540,
            shard_bytes: 1,
            ..Self::new("commits by bytes", Dtype::Int8, &WIDE_INT8, steps)
        }
    }

    /// More rows after the store was finished, twice.
    pub fn appends_to_finished(dtype: Dtype) -> Self {
        let steps = vec![
            Step::Append(3),
            Step::Commit,
            Step::Finish(&[8, 9]),
            Step::Append(2),
            Step::Commit,
            Step::Append(1),
            Step::Finish(&[8]),
            Step::Append(1),
            Step::Finish(&[]),
        ];
        Self::new("appends to finished", dtype, &NARROW, steps)
    }

    pub fn spec(&self) -> StoreSpec {
        spec(self.dtype, self.columns)
    }

    /// How many rows the finished store has.
    pub fn rows(&self) -> usize {
        self.steps.iter().map(Step::rows).sum()
    }

    /// Numbers of rows at which the store is finished.
    fn finishes_at(&self) -> Vec<usize> {
        let mut rows = 0;
        let mut finishes = Vec::new();
        for step in &self.steps {
            rows += step.rows();
            if matches!(step, Step::Finish(_)) {
                finishes.push(rows);
            }
        }
        finishes
    }

    /// Opens the store or makes it, does what is left of the steps, and says along the way what its
    /// owner may count on.
    ///
    /// # Errors
    /// The writer's first, after which it has refused to go on.
    pub fn run(
        &self,
        store: &Path,
        disk: Arc<dyn Disk>,
        tell: &mut dyn FnMut(Told),
    ) -> Result<(), Error> {
        let options = WriterOptions {
            commit_bytes: self.commit_bytes,
            shard_bytes: self.shard_bytes,
            disk,
            ..manual()
        };
        let workers = Workers::serial();
        let mut writer = StoreWriter::resume(store, self.spec(), options, &workers)?;
        let done = writer.committed_ids(&workers)?.len();
        let mut given = 0;
        tell(shown(store, done)?);
        for step in &self.steps {
            let first = given;
            given += step.rows();
            if given < done || (given == done && !matches!(step, Step::Finish(_))) {
                continue;
            }
            tell(shown(store, given)?);
            let missing = first.max(done)..given;
            let outcome = match step {
                Step::Append(_) => {
                    let width = writer.layout().width();
                    let values = &self.values[missing.start * width..missing.end * width];
                    writer.append(values, &ids(missing.start, missing.len()), &workers)
                }
                Step::Commit => writer.commit(),
                Step::Finish(skipped) => writer.finish(skipped),
            };
            outcome.inspect_err(|_| refuses_everything(&mut writer))?;
            tell(shown(store, given)?);
        }
        Ok(())
    }
}

impl Step {
    fn rows(&self) -> usize {
        match self {
            Self::Append(count) => *count,
            _ => 0,
        }
    }
}

/// What a reader sees of a store whose writer has nothing under way, and was given so many rows.
fn shown(store: &Path, given: usize) -> Result<Told, Error> {
    let reader = StoreReader::open(store)?;
    let (rows, given) = (reader.rows(), given as u64);
    Ok(Told {
        exists: true,
        rows,
        given,
        complete: reader.complete() && rows == given,
    })
}

fn refuses_everything(writer: &mut StoreWriter) {
    assert!(writer.broken());
    for outcome in [
        writer.append(&[], &[], &Workers::serial()),
        writer.commit(),
        writer.finish(&[]),
    ] {
        assert!(matches!(outcome, Err(Error::Broken { .. })), "{outcome:?}");
    }
}

/// A job and the store that it makes when nothing disturbs it.
pub struct Expected {
    pub job: Job,
    files: BTreeMap<String, Vec<u8>>,
    ids: Vec<u64>,
    values: Vec<f32>,
    finishes_at: Vec<usize>,
}

/// What opening a store shows: how many rows, and whether it is complete.
pub type Shown = Option<(u64, bool)>;

impl Expected {
    pub fn of(job: Job) -> Self {
        let folder = folder();
        let store = folder.path().join("store");
        job.run(&store, quick_disk(), &mut |_| ()).unwrap();
        let reader = StoreReader::open(&store).unwrap();
        let workers = Workers::serial();
        let all: Vec<u64> = (0..reader.rows()).collect();
        let values = reader.read_rows(&all, &workers).unwrap();
        if job.dtype == Dtype::Float32 {
            assert_eq!(
                values, *job.values,
                "an undisturbed store holds what it was given"
            );
        }
        Self {
            files: visible_files(&store),
            ids: reader.ids(&workers).unwrap(),
            values,
            finishes_at: job.finishes_at(),
            job,
        }
    }

    /// Opens a store, which must hold the first rows of the job, all of them as they were given.
    ///
    /// # Errors
    /// What else it holds, or why it does not open.
    pub fn read(&self, store: &Path) -> Result<Shown, String> {
        let workers = Workers::serial();
        let reader = match StoreReader::open(store) {
            Ok(reader) => reader,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(format!("it does not open: {error}")),
        };
        let whole = |error| format!("it opens, but: {error}");
        reader.verify(&workers).map_err(whole)?;
        let rows = reader.rows() as usize;
        let got = reader.ids(&workers).map_err(whole)?;
        if self.ids.get(..rows) != Some(&got[..]) {
            return Err(format!("the ids are not the first {rows}: {got:?}"));
        }
        let all: Vec<u64> = (0..reader.rows()).collect();
        let values = reader.read_rows(&all, &workers).map_err(whole)?;
        if self.values[..values.len()] != values {
            return Err("the rows have other values than were given".to_owned());
        }
        if reader.complete() && !self.finishes_at.contains(&rows) {
            return Err(format!("it is complete with {rows} rows"));
        }
        Ok(Some((reader.rows(), reader.complete())))
    }

    /// Reads the store in a folder, as [`Self::read`] does, and then completes it.
    ///
    /// # Errors
    /// Why not.
    pub fn read_and_complete(&self, folder: &Path) -> Result<Shown, String> {
        let store = folder.join("store");
        let shown = self.read(&store)?;
        self.complete(&store)?;
        Ok(shown)
    }

    /// Does what is left of the job, after which the store is the expected one, byte for byte.
    ///
    /// # Errors
    /// Why not.
    pub fn complete(&self, store: &Path) -> Result<(), String> {
        let outcome = self.job.run(store, quick_disk(), &mut |_| ());
        outcome.map_err(|error| format!("it cannot be gone on with: {error}"))?;
        self.check_finished(store)
    }

    /// Compares a store with the expected one, byte for byte.
    ///
    /// # Errors
    /// The first file that differs.
    pub fn check_finished(&self, store: &Path) -> Result<(), String> {
        let files = visible_files(store);
        if !files.keys().eq(self.files.keys()) {
            return Err(format!("it ends with the files {:?}", files.keys()));
        }
        match files
            .iter()
            .find(|(name, bytes)| self.files[*name] != **bytes)
        {
            Some((name, _)) => Err(format!("it ends with another {name}")),
            None => Ok(()),
        }
    }
}

/// Every file of a store with its bytes, but for its locks.
fn visible_files(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(store);
    files.retain(|name, _| !name.starts_with('.'));
    files
}

/// Compares what a store shows with what its owner was told.
///
/// # Errors
/// What is lost, or there though it was never given.
pub fn judge(shown: Shown, told: Told) -> Result<(), String> {
    match shown {
        None if told.exists => Err("the store is gone".to_owned()),
        None => Ok(()),
        Some((rows, _)) if rows < told.rows => Err(format!(
            "{} rows were committed, {rows} are there",
            told.rows
        )),
        Some((rows, _)) if rows > told.given => {
            Err(format!("{} rows were given, {rows} are there", told.given))
        }
        Some((_, false)) if told.complete => Err("it was finished, and is not".to_owned()),
        Some(_) => Ok(()),
    }
}
