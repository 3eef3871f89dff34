//! `instructions KERNEL CALLS` calls a kernel that often, to be counted under callgrind. Without arguments it lists the
//! kernels. Inputs are small: callgrind takes fifty times as long.

use std::io::{Write, stdout};
use std::process::ExitCode;

use grass_benches::inputs::{call, call_factors, factor, rows, values};
use grass_benches::specs;
use grass_core::Compressor;

/// A compressor and its input.
enum Case {
    /// That many rows.
    Rows(usize, Compressor),
    /// Factors `(n, t, d)`.
    Factors((usize, usize, usize), Compressor),
}
use Case::{Factors, Rows};

/// Its name and how it is made.
type Kernel = (&'static str, fn() -> Case);

const KERNELS: [Kernel; 12] = [
    ("cyclic n=1 64 to 16", || {
        Rows(1, specs::sjlt("cyclic", 64, 16))
    }),
    ("cyclic n=1 2^20 to 4096", || {
        Rows(1, specs::sjlt("cyclic", 1 << 20, 4096))
    }),
    ("cyclic n=32 2^16 to 4096", || {
        Rows(32, specs::sjlt("cyclic", 1 << 16, 4096))
    }),
    ("iid n=1 2^18 to 4096", || {
        Rows(1, specs::sjlt("iid", 1 << 18, 4096))
    }),
    ("iid n=16 2^16 to 4096", || {
        Rows(16, specs::sjlt("iid", 1 << 16, 4096))
    }),
    ("mask n=1 2^20 to 16384", || {
        Rows(1, specs::mask(1 << 20, 16384))
    }),
    ("GraSS n=1 2^20 to 16384 to 4096", || {
        Rows(1, specs::grass(1 << 20, 16384, 4096))
    }),
    ("FactGraSS 2 x 128 x 2048", || {
        Factors((2, 128, 2048), specs::factgrass(2048, 128, 4096))
    }),
    ("LoGra 2 x 128 x 2048", || {
        Factors((2, 128, 2048), specs::logra(2048, 64))
    }),
    ("tile 1 x 128 x 512", || {
        Factors((1, 128, 512), specs::tile(512, 4096))
    }),
    ("Gaussian n=8 2^12 to 256", || {
        Rows(8, specs::dense("normal", 1 << 12, 256))
    }),
    ("Rademacher n=8 2^12 to 256", || {
        Rows(8, specs::dense("rademacher", 1 << 12, 256))
    }),
];

fn repeat(mut call: impl FnMut(), calls: usize) {
    for _ in 0..calls {
        call();
    }
}

fn run(case: Case, calls: usize) {
    match case {
        Rows(n, compressor) => {
            let p = compressor.input_dim();
            let data = values(n * p);
            repeat(call(&compressor, &rows(&data, (n, p), p)), calls);
        }
        Factors(shape, compressor) => {
            let data = values(shape.0 * shape.1 * shape.2);
            let factor = factor(&data, shape);
            repeat(call_factors(&compressor, &factor, &factor), calls);
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        let names = KERNELS.map(|(name, _)| name).join("\n");
        return writeln!(stdout(), "{names}").map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let kernel = KERNELS.iter().find(|(name, _)| *name == arguments[0]);
    let calls = arguments.get(1).and_then(|calls| calls.parse().ok());
    let (Some((_, case)), Some(calls)) = (kernel, calls) else {
        eprintln!(
            "expected the name of a kernel and a number of calls, got {arguments:?}: no arguments list the kernels"
        );
        return ExitCode::FAILURE;
    };
    run(case(), calls);
    ExitCode::SUCCESS
}
