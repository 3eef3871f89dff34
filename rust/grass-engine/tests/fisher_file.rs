//! Saved Fisher matrices are used again, never believed when anything is wrong with them, and never in the way.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{ONE_COMMIT, numbers, write};
use grass_core::parallel::Workers;
use grass_engine::{DEFAULT_MEMORY, Preconditioned, precondition, self_influence};
use grass_store::{Dtype, StoreReader};
use ndarray::Array2;

/// One column narrower, one wider than there are rows.
const WIDTHS: [usize; 2] = [20, 70];
const ROWS: usize = 40;
const SIZES: [usize; 2] = [20, ROWS];
/// The rows' inner products are in double precision.
const NAMES: [&str; 2] = ["column-00000.fisher", "column-00001.double.fisher"];
const MAGICS: [&[u8; 8]; 2] = [b"GRASSFSH", b"GRASSFSD"];

struct Case {
    _folder: tempfile::TempDir,
    store: StoreReader,
    queries: Array2<f32>,
}

impl Case {
    fn new(name: &str, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let width = WIDTHS.iter().sum();
        let rows = numbers(ROWS, width, seed);
        let path = folder.path().join(name);
        Self {
            store: write(&path, Dtype::Float32, &WIDTHS, &rows, ONE_COMMIT),
            _folder: folder,
            queries: numbers(3, width, 2),
        }
    }

    fn solved(&self) -> Preconditioned {
        let queries = self.queries.as_slice().unwrap();
        let workers = Workers::with_threads(2);
        precondition(&self.store, queries, &[0.4], DEFAULT_MEMORY, &workers).unwrap()
    }

    fn folder(&self) -> PathBuf {
        let path = self.store.path();
        let name = path.file_name().unwrap().to_str().unwrap();
        path.with_file_name(format!("{name}.fisher"))
    }

    fn files(&self) -> [PathBuf; 2] {
        NAMES.map(|name| self.folder().join(name))
    }

    fn bytes(&self) -> [Vec<u8>; 2] {
        self.files().map(|path| fs::read(path).unwrap())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_a_column_is_beside_the_store_and_has_the_length_that_is_told() {
    let case = Case::new("größe of a store", 1);
    let before = names(case.store.path());
    case.solved();
    assert_eq!(names(case.store.path()), before);
    assert_eq!(names(&case.folder()), [".lock", NAMES[0], NAMES[1]]);
    for ((bytes, size), magic) in case.bytes().iter().zip(SIZES).zip(MAGICS) {
        assert_eq!(bytes.len(), 60 + size * (size + 1) / 2 * 8 + 4);
        assert_eq!(&bytes[..8], magic);
        assert_eq!(bytes[24..56], case.store.fingerprint().unwrap());
        let values = &bytes[60..bytes.len() - 4];
        assert_eq!(
            bytes[bytes.len() - 4..],
            crc32fast::hash(values).to_le_bytes()
        );
    }
}

/// The format, read as its documentation says: the numbers are the sums of products.
#[test]
fn a_file_holds_the_lower_triangle_row_after_row() {
    let folder = tempfile::tempdir().unwrap();
    // 600 coordinates: several tiles, and two blocks of numbers.
    let rows = numbers(601, 600, 1);
    let store = write(
        &folder.path().join("s"),
        Dtype::Float32,
        &[600],
        &rows,
        ONE_COMMIT,
    );
    let queries = vec![1.0; 600];
    let workers = Workers::with_threads(2);
    precondition(&store, &queries, &[0.4], DEFAULT_MEMORY, &workers).unwrap();
    let bytes = fs::read(folder.path().join("s.fisher/column-00000.fisher")).unwrap();
    let mut values = Vec::new();
    for block in bytes[60..].chunks((1 << 20) + 4) {
        let (block, checksum) = block.split_at(block.len() - 4);
        assert_eq!(checksum, crc32fast::hash(block).to_le_bytes());
        values.extend(
            block
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f64::from_le_bytes(bytes)),
        );
    }
    assert_eq!(values.len(), 600 * 601 / 2);
    let rows = rows.mapv(f64::from);
    let gram = rows.t().dot(&rows);
    let mut saved = values.into_iter();
    for i in 0..600 {
        for j in 0..=i {
            let scale = (gram[[i, i]] * gram[[j, j]]).sqrt();
            let difference = (saved.next().unwrap() - gram[[i, j]]).abs();
            // Sums of 64 positive terms are off by 64 u / 3 at random, u = 2^-24, and 600 rows by 5e-8: at most five times that.
            assert!(
                difference < 2.6e-7 * scale,
                "{i} {j} {:e}",
                difference / scale
            );
        }
    }
}

#[test]
fn saved_matrices_give_the_same_bits_without_reading_a_row() {
    let case = Case::new("s", 1);
    let fresh = case.solved();
    let workers = Workers::with_threads(2);
    let lone = self_influence(&case.store, &[0.4, 1.0], &workers).unwrap();
    let bytes = case.bytes();
    assert!(case.solved() == fresh);
    assert!(self_influence(&case.store, &[0.4, 1.0], &workers).unwrap() == lone);
    assert!(case.bytes() == bytes);
    fs::remove_dir_all(case.folder()).unwrap();
    assert!(case.solved() == fresh);

    // A store of narrow columns alone is not read at all: not even damage is seen. Nor for one whose rows hardly span
    // it, which needs a second matrix.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let mut rows = numbers(30, 5, 1);
    let first = rows.column(0).to_owned();
    rows.column_mut(4).assign(&first);
    let store = write(&path, Dtype::Float32, &[5], &rows, ONE_COMMIT);
    let solve = || {
        precondition(
            &store,
            &[1.0; 5],
            &[1e-6],
            DEFAULT_MEMORY,
            &Workers::serial(),
        )
    };
    let fresh = solve().unwrap();
    assert_eq!(
        names(&folder.path().join("s.fisher")),
        [".lock", "column-00000.double.fisher", "column-00000.fisher"]
    );
    let rows = path.join("shard-00000.rows");
    let mut bytes = fs::read(&rows).unwrap();
    bytes[4096 + 50] ^= 1;
    fs::write(&rows, bytes).unwrap();
    assert!(solve().unwrap() == fresh);
    fs::remove_dir_all(folder.path().join("s.fisher")).unwrap();
    assert!(solve().is_err());
    assert!(!folder.path().join("s.fisher").exists());
}

#[test]
fn damaged_cut_and_foreign_files_are_replaced() {
    let case = Case::new("s", 1);
    let fresh = case.solved();
    let good = case.bytes();
    let other = Case::new("s", 3);
    other.solved();
    for column in 0..2 {
        let length = good[column].len();
        let mut wrong: Vec<Vec<u8>> =
            [0, 9, 13, 17, 30, 57, 60, length / 2, length - 5, length - 1]
                .into_iter()
                .map(|place| {
                    let mut bytes = good[column].clone();
                    bytes[place] ^= 1;
                    bytes
                })
                .collect();
        wrong.extend([0, 10, 60, length - 1].map(|cut| good[column][..cut].to_vec()));
        wrong.push([good[column].as_slice(), &[0]].concat());
        wrong.push(other.bytes()[column].clone());
        wrong.push(good[1 - column].clone());
        for bytes in wrong {
            fs::write(&case.files()[column], bytes).unwrap();
            assert!(case.solved() == fresh);
            assert!(case.bytes() == good);
        }
    }
}

#[test]
fn a_place_that_cannot_be_written_is_no_error() {
    let case = Case::new("s", 1);
    let fresh = case.solved();
    fs::remove_dir_all(case.folder()).unwrap();
    // A file where the folder would be.
    fs::write(case.folder(), b"mine").unwrap();
    assert!(case.solved() == fresh);
    assert_eq!(fs::read(case.folder()).unwrap(), b"mine");
    fs::remove_file(case.folder()).unwrap();
    // A folder where a file would be.
    fs::create_dir_all(&case.files()[0]).unwrap();
    assert!(case.solved() == fresh);
    assert_eq!(names(&case.folder()), [".lock", NAMES[0], NAMES[1]]);
}

#[test]
fn nothing_is_written_into_another_store() {
    let case = Case::new("s", 1);
    fs::create_dir(case.folder()).unwrap();
    fs::write(case.folder().join("manifest.json"), b"{}").unwrap();
    case.solved();
    assert_eq!(names(&case.folder()), ["manifest.json"]);
}

#[test]
fn while_another_process_saves_nothing_is_written() {
    let case = Case::new("s", 1);
    fs::create_dir(case.folder()).unwrap();
    let lock = fs::File::create(case.folder().join(".lock")).unwrap();
    lock.lock().unwrap();
    let fresh = case.solved();
    assert_eq!(names(&case.folder()), [".lock"]);
    lock.unlock().unwrap();
    assert!(case.solved() == fresh);
    assert_eq!(names(&case.folder()).len(), 3);
}

#[test]
fn what_a_killed_call_left_is_replaced() {
    let case = Case::new("s", 1);
    let fresh = case.solved();
    let [path, _] = case.files();
    fs::remove_file(&path).unwrap();
    fs::write(case.folder().join("column-00000.fisher.tmp"), b"half").unwrap();
    assert!(case.solved() == fresh);
    assert_eq!(names(&case.folder()).len(), 3);
}
