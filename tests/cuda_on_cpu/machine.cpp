#include "machine.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "context.h"
#include "faults.h"
#include "pages.h"
#include "thread_sanitizer.h"

#ifdef EMULATOR_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

enum class State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

constexpr std::size_t STACK_BYTES = 64 * 1024;
constexpr unsigned MAX_THREADS = 1024, MAX_SHARED_BYTES = 227 * 1024;

struct Copy {
    void* shared;
    const void* global;
    unsigned size, bytes, group;
};

struct Fiber {
    explicit Fiber(std::size_t threads) : sanitizer(sanitizer_thread(threads)) {}

    Pages stack{"a thread's stack", STACK_BYTES};
    Context context;
    State state;
    Site site;
    unsigned number;
    Index3 index;
    // What it waits with.
    unsigned mask;
    bool orders_memory;
    Value value;
    // Lanes that met it last.
    unsigned lanes;
    std::vector<Copy> copies;
    unsigned groups;
    void* sanitizer;
};

struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Value> gathered;
    std::unique_ptr<Pages> shared;
    Context scheduler;
    Fiber* current = nullptr;
    Index3 block, block_shape, grid_shape;
    void (*call)(void**);
    void** args;
    std::string error;
};

Machine machine;

std::string name_of(const Index3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string name_of(const Fiber& fiber) {
    return "thread " + name_of(fiber.index) + " of block " + name_of(machine.block);
}

std::string name_of(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

void leave(State at) {
    Fiber& self = *machine.current;
    self.state = at;
    sanitizer_enters(scheduler_thread);
    switch_context(self.context, machine.scheduler);
}

void run_fiber() {
    machine.call(machine.args);
    leave(State::DONE);
}

// The threads that one who waits waits for, itself among them.
std::vector<Fiber*> awaited(const Fiber& fiber) {
    const bool warp = fiber.state == State::AT_WARP_BARRIER;
    const std::size_t begin = warp ? fiber.number / warp_size * warp_size : 0;
    const std::size_t all = machine.fibers.size(), end = warp ? std::min<std::size_t>(begin + warp_size, all) : all;
    std::vector<Fiber*> group;
    for (std::size_t i = begin; i < end; ++i) {
        Fiber* other = machine.fibers[i].get();
        if (other->state != State::DONE && (!warp || fiber.mask >> (i - begin) & 1)) group.push_back(other);
    }
    return group;
}

bool together(const Fiber& a, const Fiber& b) {
    return a.state == b.state && a.mask == b.mask && a.site.line == b.site.line && a.site.file == b.site.file;
}

// Lets the threads that `first` waits for go on if they all wait for each other.
void release(const Fiber& first) {
    const std::vector<Fiber*> group = awaited(first);
    for (const Fiber* fiber : group)
        if (!together(first, *fiber)) return;
    unsigned lanes = 0;
    for (const Fiber* fiber : group) lanes |= 1u << fiber->number % warp_size;
    for (Fiber* fiber : group) {
        fiber->state = State::READY;
        fiber->lanes = lanes;
        machine.gathered[fiber->number] = fiber->value;
    }
    if (!first.orders_memory) return;
    std::vector<void*> threads;
    for (const Fiber* fiber : group) threads.push_back(fiber->sanitizer);
    sanitizer_orders(threads, group[0]);
}

// Whether any thread can go on.
bool release_all() {
    bool ready = false, block = true;
    const Fiber* waiting = nullptr;
    for (const auto& fiber : machine.fibers) {
        if (fiber->state == State::AT_WARP_BARRIER) release(*fiber);
        ready |= fiber->state == State::READY;
        block &= fiber->state == State::AT_BLOCK_BARRIER || fiber->state == State::DONE;
        if (fiber->state != State::DONE && !waiting) waiting = fiber.get();
    }
    if (waiting && block) release(*waiting);
    if (!waiting || ready || waiting->state == State::READY) return waiting;
    for (const Fiber* fiber : awaited(*waiting)) {
        if (together(*waiting, *fiber)) continue;
        machine.error = name_of(*waiting) + " waits at " + name_of(waiting->site) + " for thread " +
                        name_of(fiber->index) + ", which waits at " + name_of(fiber->site);
        if (waiting->state == fiber->state && waiting->mask != fiber->mask) machine.error += " for other lanes";
        break;
    }
    return false;
}

void start(Fiber& fiber, unsigned number) {
    const Index3 shape = machine.block_shape;
    fiber.number = number;
    fiber.index = {number % shape.x, number / shape.x % shape.y, number / shape.x / shape.y};
    fiber.state = State::READY;
    fiber.copies.clear();
    fiber.groups = 0;
    start_context(fiber.context, fiber.stack.data, STACK_BYTES, run_fiber);
}

void make_shared_memory(unsigned bytes) {
    machine.shared = std::make_unique<Pages>("shared memory", bytes);
    machine.shared->poison();
#ifdef EMULATOR_ADDRESS_SANITIZER
    const Pages& shared = *machine.shared;
    __asan_poison_memory_region(shared.touchable(), shared.data - shared.touchable());
    __asan_poison_memory_region(shared.data + bytes, shared.touchable_end() - shared.data - bytes);
#endif
}

void run_block(const std::vector<unsigned>& order, unsigned shared_bytes) {
    if (!machine.shared || machine.shared->bytes != shared_bytes) make_shared_memory(shared_bytes);
    std::memset(machine.shared->data, 0xFF, shared_bytes);
    for (unsigned i = 0; i < order.size(); ++i) {
        if (i == machine.fibers.size()) machine.fibers.push_back(std::make_unique<Fiber>(order.size()));
        start(*machine.fibers[i], i);
    }
    machine.fibers.resize(order.size());
    while (machine.error.empty() && release_all()) {
        for (const unsigned i : order) {
            if (machine.fibers[i]->state != State::READY) continue;
            machine.current = machine.fibers[i].get();
            sanitizer_enters(machine.current->sanitizer);
            switch_context(machine.scheduler, machine.current->context);
            machine.current = nullptr;
            if (!machine.error.empty()) break;
        }
    }
    if (blocks_share_memory) return;
    for (const std::unique_ptr<Fiber>& fiber : machine.fibers) {
        // The thread took this memory.
        sanitizer_enters(fiber->sanitizer);
        fiber->copies = std::vector<Copy>();
    }
    sanitizer_enters(scheduler_thread);
    machine.fibers.clear();
    machine.shared = nullptr;
}

// Schedule 0 runs the threads and blocks forwards, 1 backwards, others in an order of their own.
std::vector<unsigned> order_of(unsigned count, unsigned schedule) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
    std::uint64_t state = schedule;
    for (unsigned i = count; schedule > 1 && i > 1; --i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i - 1], order[(state >> 33) % i]);
    }
    return order;
}

std::string refusal(const std::string& types, const unsigned* shape, unsigned shared_bytes, const char* given_types) {
    const std::uint64_t threads = std::uint64_t(shape[3]) * shape[4] * shape[5];
    const std::uint64_t blocks = std::uint64_t(shape[0]) * shape[1] * shape[2];
    if (types != given_types) return "the kernel takes (" + types + "), the launch gives (" + given_types + ")";
    if (blocks >> 32) return "expected less than 2^32 blocks, which are run one after another";
    if (!blocks || shape[0] > 0x7FFFFFFF || shape[1] > 65535 || shape[2] > 65535)
        return "expected 1 to (2147483647, 65535, 65535) blocks, got " + name_of({shape[0], shape[1], shape[2]});
    if (!threads || threads > MAX_THREADS || shape[5] > 64)
        return "expected 1 to 1024 threads, at most 64 on the last axis, got " +
               name_of({shape[3], shape[4], shape[5]});
    if (shared_bytes > MAX_SHARED_BYTES)
        return "expected at most 232448 bytes of shared memory, got " + std::to_string(shared_bytes);
    return {};
}

// A thread that touches what is not its memory ends the launch instead of the process.
void on_fault(int signal, siginfo_t* fault, void*) {
    if (!machine.current) {
        std::signal(signal, SIG_DFL);
        return;
    }
    const std::string place = Pages::describe(fault->si_addr);
    fail("touched memory that is not its own: " + (place.empty() ? "an address of no array" : place));
}

}  // namespace

Index3 thread_index() { return machine.current->index; }
Index3 block_index() { return machine.block; }
Index3 block_shape() { return machine.block_shape; }
Index3 grid_shape() { return machine.grid_shape; }
unsigned lane() { return machine.current->number % warp_size; }
unsigned char* shared_memory() { return machine.shared->data; }

void fail(const std::string& message) {
    machine.error = name_of(*machine.current) + " " + message;
    leave(State::DONE);
}

void wait_for_block(Site site) {
    Fiber& self = *machine.current;
    self.site = site;
    self.mask = 0;
    self.orders_memory = true;
    leave(State::AT_BLOCK_BARRIER);
}

Gathered gather(unsigned mask, const Value& value, bool orders_memory, Site site) {
    Fiber& self = *machine.current;
    if (!(mask >> lane() & 1)) fail("calls with a mask without its own lane at " + name_of(site));
    self.site = site;
    self.mask = mask;
    self.orders_memory = orders_memory;
    self.value = value;
    leave(State::AT_WARP_BARRIER);
    return {&machine.gathered[self.number - lane()], self.lanes};
}

void start_copy(void* shared, const void* global, unsigned size, unsigned bytes) {
    Fiber& self = *machine.current;
    for (const void* address : {static_cast<const void*>(shared), global})
        if (reinterpret_cast<std::uintptr_t>(address) % size)
            fail("copies " + std::to_string(size) + " bytes asynchronously, but an address is not a multiple of that");
    if (bytes > size) fail("copies " + std::to_string(bytes) + " of " + std::to_string(size) + " bytes");
    std::memset(shared, 0xFF, size);
    self.copies.push_back({shared, global, size, bytes, self.groups});
}

void commit_copies() { ++machine.current->groups; }

void wait_for_copies(unsigned pending) {
    Fiber& self = *machine.current;
    std::vector<Copy> later;
    for (const Copy& copy : self.copies) {
        if (copy.group + pending >= self.groups) {
            later.push_back(copy);
            continue;
        }
        std::memset(copy.shared, 0, copy.size);
        std::memcpy(copy.shared, copy.global, copy.bytes);
    }
    self.copies = std::move(later);
}

const char* launch(void (*call)(void**), const std::string& types, const unsigned* shape, unsigned shared_bytes,
                   unsigned schedule, void** args, const char* given_types) {
    machine.error = refusal(types, shape, shared_bytes, given_types);
    if (!machine.error.empty()) return machine.error.c_str();
    const FaultsCaught caught(on_fault);
    machine.grid_shape = {shape[0], shape[1], shape[2]};
    machine.block_shape = {shape[3], shape[4], shape[5]};
    machine.call = call;
    machine.args = args;
    const unsigned threads = shape[3] * shape[4] * shape[5];
    machine.gathered.resize(threads + warp_size);
    const std::vector<unsigned> order = order_of(threads, schedule);
    for (const unsigned block : order_of(shape[0] * shape[1] * shape[2], schedule)) {
        machine.block = {block % shape[0], block / shape[0] % shape[1], block / shape[0] / shape[1]};
        run_block(order, shared_bytes);
        if (!machine.error.empty()) return machine.error.c_str();
    }
    sanitizer_ends_launch();
    return nullptr;
}

}  // namespace emulator

// Memory for arrays of the tests, with pages before and behind it that nobody may touch.

extern "C" void* new_array(std::size_t bytes) {
    auto pages = new Pages("an array", bytes);
    pages->poison();
    return pages;
}

extern "C" void* array_data(void* pages) { return static_cast<Pages*>(pages)->data; }

extern "C" void delete_array(void* pages) { delete static_cast<Pages*>(pages); }
