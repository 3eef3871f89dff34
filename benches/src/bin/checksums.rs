//! `checksums FILE THREADS QUERIES` prints how many seconds longer threads take to read a file and to multiply it with
//! queries as rows of floats when they also take its CRC-32, as scoring does: beside the products of one query, and of each
//! piece while it is in cache before those of many.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write, stdout};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use grass_core::dot::{
    Checksum, FLOAT_RUN, Float, Lanes, Rows, TILE, add_float_products, lay_out_floats,
};
use grass_core::simd::Path;

/// Bytes read at once: a chunk of a store.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a row: one run of the kernels.
const ROW_BYTES: usize = FLOAT_RUN * size_of::<f32>();

/// Bytes that are multiplied with many queries at a time.
const CACHED_BYTES: usize = 256 << 10;

/// The median of so many differences is printed.
const ROUNDS: usize = 5;

/// Queries laid out in tiles.
struct Queries {
    path: Path,
    tiles: Vec<(usize, Vec<Lanes>)>,
}

impl Queries {
    fn new(count: usize) -> Self {
        let tiles = (0..count).step_by(TILE).map(|first| {
            let queries = TILE.min(count - first);
            let mut lanes = vec![Lanes::default(); FLOAT_RUN / Lanes::default().0.len() * queries];
            let values = vec![1e-3; FLOAT_RUN];
            for query in 0..queries {
                lay_out_floats(&values, 1.0, (query, queries), &mut lanes);
            }
            (queries, lanes)
        });
        Self {
            path: Path::current(),
            tiles: tiles.collect(),
        }
    }

    /// Multiplies rows; a checksum goes on beside.
    fn multiply(&self, bytes: &[u8], sums: &mut Vec<f64>, mut checksum: Option<&mut Checksum<'_>>) {
        let count = bytes.len() / ROW_BYTES;
        for (queries, lanes) in &self.tiles {
            sums.clear();
            sums.resize(count * queries, 0.0);
            let rows = Rows {
                bytes,
                stride: ROW_BYTES,
                count,
            };
            let checksum = checksum.as_deref_mut();
            add_float_products(
                self.path,
                Float::Float32,
                rows,
                FLOAT_RUN,
                lanes,
                sums,
                checksum,
            );
            black_box(&sums);
        }
    }
}

/// Reads every `threads`-th piece from `first` on; what is left behind the last whole piece is not read.
fn read(file: &File, first: u64, threads: u64, queries: &Queries, checked: bool) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut sums = Vec::new();
    let pieces = file.metadata()?.len() / PIECE_BYTES as u64;
    let one = queries.tiles.iter().map(|(count, _)| count).sum::<usize>() == 1;
    for number in (first..pieces).step_by(threads as usize) {
        file.read_exact_at(&mut piece, number * PIECE_BYTES as u64)?;
        let mut beside = match checked && one {
            true => Checksum::beside_products(queries.path, &piece),
            false => None,
        };
        if checked && beside.is_none() {
            black_box(crc32fast::hash(&piece));
        }
        if one {
            queries.multiply(&piece, &mut sums, beside.as_mut());
        } else {
            for part in piece.chunks(CACHED_BYTES) {
                queries.multiply(part, &mut sums, None);
            }
        }
        if let Some(beside) = beside {
            black_box(beside.finish());
        }
    }
    Ok(())
}

fn seconds(file: &File, threads: u64, queries: &Queries, checked: bool) -> io::Result<f64> {
    let start = Instant::now();
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || read(file, first, threads, queries, checked)))
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))?
        })
    })?;
    Ok(start.elapsed().as_secs_f64())
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, threads, queries] = &arguments[..] else {
        return Err(io::Error::other("expected FILE THREADS QUERIES"));
    };
    let threads: u64 = threads.parse().map_err(io::Error::other)?;
    let queries = Queries::new(queries.parse().map_err(io::Error::other)?);
    let file = File::open(path)?;
    let mut longer = Vec::new();
    for _ in 0..ROUNDS {
        let checked = seconds(&file, threads, &queries, true)?;
        longer.push(checked - seconds(&file, threads, &queries, false)?);
    }
    longer.sort_by(f64::total_cmp);
    writeln!(stdout(), "{}", longer[ROUNDS / 2])
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("checksums: {error}");
            ExitCode::FAILURE
        }
    }
}
