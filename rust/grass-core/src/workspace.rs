//! Scratch memory: every thread keeps the buffers of its last calls, so that a call like the last one allocates nothing.

use std::cell::RefCell;

/// The most bytes of buffers that a thread holds, those in use included, unless more are in use at a time.
pub const MOST_BYTES: usize = 8 << 20;

const MOST_VALUES: usize = MOST_BYTES / size_of::<f32>();

/// Values a cache line: buffers begin at one, so that no aligned vector straddles two.
const LINE: usize = 16;

/// What a thread holds.
struct Held {
    /// Buffers that nobody uses, the longest unused first.
    free: Vec<Vec<f32>>,
    /// Values of these and of those in use.
    values: usize,
}

thread_local! {
    static HELD: RefCell<Held> = const {
        RefCell::new(Held { free: Vec::new(), values: 0 })
    };
}

/// Runs `run` on a buffer of `len` values that nobody else has meanwhile; what they are is left from earlier uses.
///
/// The buffer begins at a cache line. Nested calls get buffers of their own.
pub(crate) fn with_f32<R>(len: usize, run: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut taken = Taken::new(len + LINE - 1);
    let bytes = LINE * size_of::<f32>();
    let first = taken.buffer.as_ptr().align_offset(bytes).min(LINE - 1);
    let buffer = &mut taken.buffer[first..first + len];
    if cfg!(debug_assertions) {
        buffer.fill(f32::NAN);
    }
    run(buffer)
}

/// A buffer in use, given back when dropped.
struct Taken {
    buffer: Vec<f32>,
}

impl Taken {
    /// The smallest free buffer of at least `len` values; a new one in place of the largest where all are smaller. So
    /// the sorted lengths only grow, and what was enough for a call is enough for the next one like it.
    fn new(len: usize) -> Self {
        let found = HELD.with_borrow_mut(|held| {
            let fitting = held.free.iter().enumerate();
            let fitting = fitting.filter(|(_, buffer)| buffer.len() >= len);
            let smallest = fitting.min_by_key(|(_, buffer)| buffer.len());
            if let Some((place, _)) = smallest {
                return Some(held.free.remove(place));
            }
            let largest = held.free.iter().enumerate();
            if let Some((place, _)) = largest.max_by_key(|(_, buffer)| buffer.len()) {
                held.discard(place);
            }
            while !held.free.is_empty() && held.values + len > MOST_VALUES {
                held.discard(0);
            }
            None
        });
        let buffer = found.unwrap_or_else(|| {
            let buffer = vec![0.0; len];
            HELD.with_borrow_mut(|held| held.values += len);
            buffer
        });
        Self { buffer }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if held.values > MOST_VALUES {
                held.values -= self.buffer.len();
            } else {
                held.free.push(std::mem::take(&mut self.buffer));
            }
        });
    }
}

impl Held {
    fn discard(&mut self, place: usize) {
        self.values -= self.free.remove(place).len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_lengths() -> Vec<usize> {
        HELD.with_borrow(|held| {
            let mut lengths: Vec<_> = held.free.iter().map(Vec::len).collect();
            assert_eq!(lengths.iter().sum::<usize>(), held.values);
            lengths.sort_unstable();
            lengths
        })
    }

    #[test]
    fn nested_buffers_are_apart_aligned_and_as_long_as_asked() {
        with_f32(100, |outer| {
            outer.fill(1.0);
            with_f32(7, |inner| {
                assert_eq!(inner.len(), 7);
                assert_eq!(inner.as_ptr().align_offset(64), 0);
                inner.fill(2.0);
            });
            assert_eq!(outer, [1.0; 100]);
            assert_eq!(outer.as_ptr().align_offset(64), 0);
        });
        with_f32(0, |empty| assert!(empty.is_empty()));
    }

    #[test]
    fn a_call_like_the_last_one_finds_its_buffers() {
        let call = || {
            with_f32(10, |_| with_f32(300, |_| ()));
            with_f32(200, |_| with_f32(200, |_| ()));
            with_f32(400, |_| ());
        };
        call();
        let kept = free_lengths();
        assert_eq!(kept, [215, 415]);
        let places = || {
            HELD.with_borrow(|held| {
                let mut places: Vec<_> = held.free.iter().map(|buffer| buffer.as_ptr()).collect();
                places.sort_unstable();
                places
            })
        };
        let before = places();
        call();
        assert_eq!(places(), before);
    }

    #[test]
    fn a_thread_holds_no_more_than_stated() {
        with_f32(MOST_VALUES / 2, |_| with_f32(MOST_VALUES / 4, |_| ()));
        assert_eq!(free_lengths().len(), 2);
        // Both go: the larger one is replaced, the other would be too much beside it.
        with_f32(MOST_VALUES - LINE, |_| {
            HELD.with_borrow(|held| assert!(held.values <= MOST_VALUES && held.free.is_empty()));
        });
        assert_eq!(free_lengths(), [MOST_VALUES - 1]);
        with_f32(MOST_VALUES, |_| ());
        assert!(free_lengths().is_empty());
    }

    #[test]
    fn a_panic_gives_the_buffer_back() {
        let outcome = std::panic::catch_unwind(|| with_f32(50, |_| panic!("on purpose")));
        assert!(outcome.is_err());
        assert_eq!(free_lengths(), [65]);
    }
}
