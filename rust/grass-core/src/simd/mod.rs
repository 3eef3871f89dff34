//! Which vector instructions the kernels use: found once, in one place.
//!
//! A kernel has a folder: `mod.rs` chooses the version for the path in use, `x86.rs` has the ones in vector registers,
//! `plain.rs` the one for any machine. What the compiler turns into vectors by itself is written once, as a body that
//! `for_each_path!` compiles for each path. Sums of whole gradients are added in the same order on every path, so
//! masks, SJLT and GraSS have the same bits; matrix products round once or twice a term, as the path has it.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

use std::sync::OnceLock;

/// The environment variable that forces a path, for tests and bug reports.
pub const VARIABLE: &str = "GRASS_SIMD";

/// A set of vector instructions that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Private, so that no path exists that the processor was not asked for.
    pub(crate) instructions: Instructions,
}

/// The sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// AVX-512 F, BW, DQ and VL, and those below.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// What every machine of the architecture has: NEON on 64-bit ARM, SSE2 on x86-64.
    Portable,
}

impl Path {
    /// Every path that this machine can run, the fastest first.
    pub fn available() -> Vec<Self> {
        [
            Instructions::Avx512,
            Instructions::Avx2,
            Instructions::Portable,
        ]
        .into_iter()
        .filter(|instructions| instructions.is_available())
        .map(|instructions| Self { instructions })
        .collect()
    }

    /// The path in use: the one that [`VARIABLE`] names where the machine can run it, else the fastest.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Path> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let forced = std::env::var(VARIABLE).unwrap_or_default();
            let available = Self::available();
            let named = available.iter().find(|path| path.name() == forced);
            *named.unwrap_or(&available[0])
        })
    }

    /// The name by which [`VARIABLE`] asks for it.
    pub fn name(self) -> &'static str {
        match self.instructions {
            Instructions::Avx512 => "avx512",
            Instructions::Avx2 => "avx2",
            Instructions::Portable if cfg!(target_arch = "aarch64") => "neon",
            Instructions::Portable => "portable",
        }
    }
}

impl Instructions {
    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        match self {
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }
}

/// Asks for the memory around `value` to be brought into the second-level cache, where the architecture has an instruction for it.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: every x86-64 processor has the instruction; it reads nothing that the program sees, and never faults.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Calls a function of `x86::avx512`, `x86::avx2` or `plain` beside the caller, which the path is made for.
macro_rules! for_path {
    ($path:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[expect(unsafe_code, reason = "calls functions compiled for instructions that not every machine has")]
            // SAFETY: a `Path` comes from `Path::available` alone, which asked the processor for these instructions.
            unsafe {
                match $path.instructions {
                    $crate::simd::Instructions::Avx512 => return x86::avx512::$function($($argument),*),
                    $crate::simd::Instructions::Avx2 => return x86::avx2::$function($($argument),*),
                    $crate::simd::Instructions::Portable => {}
                }
            }
        }
        let _ = $path;
        plain::$function($($argument),*)
    }};
}

pub(crate) use for_path;

/// Defines a function that runs one `#[inline(always)]` body compiled for the path in its first argument.
macro_rules! for_each_path {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        #[inline]
        $visibility fn $name(path: $crate::simd::Path, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($argument: $type),*) {
                    $body($($argument),*);
                }

                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($argument: $type),*) {
                    $body($($argument),*);
                }

                #[expect(unsafe_code, reason = "calls functions compiled for instructions that not every machine has")]
                // SAFETY: a `Path` comes from `Path::available` alone, which asked the processor for these instructions.
                unsafe {
                    match path.instructions {
                        $crate::simd::Instructions::Avx512 => return avx512($($argument),*),
                        $crate::simd::Instructions::Avx2 => return avx2($($argument),*),
                        $crate::simd::Instructions::Portable => {}
                    }
                }
            }
            let _ = path;
            $body($($argument),*);
        }
    };
}

pub(crate) use for_each_path;
