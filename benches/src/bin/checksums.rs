//! `checksums FILE THREADS` prints how many seconds longer threads take to read a file and add it up when they also take
//! the CRC-32 of each piece while it is in cache: what checksums cost where rows are read to be multiplied.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write, stdout};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

/// Bytes read at once: a part of a second-level cache.
const PIECE_BYTES: u64 = 256 << 10;

/// The median of so many differences is printed.
const ROUNDS: usize = 3;

/// Reads every `threads`-th piece from `first` on; what is left behind the last whole piece is not read.
fn read(file: &File, first: u64, threads: u64, checked: bool) -> io::Result<u64> {
    let mut piece = vec![0; PIECE_BYTES as usize];
    let mut hasher = crc32fast::Hasher::new();
    let mut sums = [0u64; 16];
    let pieces = file.metadata()?.len() / PIECE_BYTES;
    for number in (first..pieces).step_by(threads as usize) {
        file.read_exact_at(&mut piece, number * PIECE_BYTES)?;
        if checked {
            hasher.update(&piece);
        }
        let (words, _) = piece.as_chunks::<8>();
        let (lines, _) = words.as_chunks::<16>();
        for line in lines {
            for (sum, word) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    let sum = sums
        .iter()
        .fold(0, |total: u64, sum| total.wrapping_add(*sum));
    Ok(sum.wrapping_add(u64::from(hasher.finalize())))
}

fn seconds(file: &File, threads: u64, checked: bool) -> io::Result<f64> {
    let start = Instant::now();
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || read(file, first, threads, checked)))
            .collect();
        running.into_iter().try_for_each(|thread| {
            black_box(
                thread
                    .join()
                    .map_err(|_| io::Error::other("a thread panicked"))??,
            );
            Ok::<(), io::Error>(())
        })
    })?;
    Ok(start.elapsed().as_secs_f64())
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, threads] = &arguments[..] else {
        return Err(io::Error::other("expected FILE THREADS"));
    };
    let threads: u64 = threads.parse().map_err(io::Error::other)?;
    let file = File::open(path)?;
    let mut longer = Vec::new();
    for _ in 0..ROUNDS {
        longer.push(seconds(&file, threads, true)? - seconds(&file, threads, false)?);
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
