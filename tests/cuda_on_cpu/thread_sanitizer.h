// What ThreadSanitizer is told: every thread of a grid is a thread of its own, ordered by barriers alone, neither by
// the scheduler nor by what the machine itself does, which is compiled without it.

#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

#ifdef EMULATOR_THREAD_SANITIZER

#include <sanitizer/tsan_interface.h>

namespace emulator {

void* const scheduler_thread = __tsan_get_current_fiber();
inline std::vector<void*> sanitizer_threads;
inline std::size_t sanitizer_threads_given;
// Its address stands for what the scheduler has done.
inline char scheduler_order;

inline void sanitizer_enters(void* thread) { __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync); }

// Each of `threads` sees what the others did. An address stands for their meeting.
inline void sanitizer_orders(const std::vector<void*>& threads, void* meeting) {
    for (const auto order : {__tsan_release, __tsan_acquire}) {
        for (void* thread : threads) {
            sanitizer_enters(thread);
            order(meeting);
        }
    }
    sanitizer_enters(scheduler_thread);
}

// A thread of a block with that many. One costs a millisecond, so that blocks share about a thousand in turn; a block
// is told from the one before at least.
inline void* sanitizer_thread(std::size_t threads) {
    const std::size_t most = threads * (threads > 512 ? 2 : 1024 / threads);
    if (sanitizer_threads.size() < most) sanitizer_threads.push_back(__tsan_create_fiber(0));
    void* thread = sanitizer_threads[sanitizer_threads_given++ % most];
    // What the scheduler made for the block comes before it.
    __tsan_release(&scheduler_order);
    sanitizer_enters(thread);
    __tsan_acquire(&scheduler_order);
    sanitizer_enters(scheduler_thread);
    return thread;
}

// Who launched sees what all threads did.
inline void sanitizer_ends_launch() {
    for (void* thread : sanitizer_threads) {
        sanitizer_enters(thread);
        __tsan_release(&scheduler_order);
        sanitizer_enters(scheduler_thread);
        __tsan_destroy_fiber(thread);
    }
    __tsan_acquire(&scheduler_order);
    sanitizer_threads.clear();
    sanitizer_threads_given = 0;
}

// Another block has other threads and other memory.
constexpr bool blocks_share_memory = false;

}  // namespace emulator

#else

namespace emulator {

void* const scheduler_thread = nullptr;
inline void sanitizer_enters(void*) {}
inline void sanitizer_orders(const std::vector<void*>&, void*) {}
inline void* sanitizer_thread(std::size_t) { return nullptr; }
inline void sanitizer_ends_launch() {}
constexpr bool blocks_share_memory = true;

}  // namespace emulator

#endif
