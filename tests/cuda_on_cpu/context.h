// Stacks that a thread changes between.

#pragma once

#include <cstddef>
#include <cstdint>

// ThreadSanitizer's build takes the body for other machines, so that tests run both.
#if defined(__x86_64__) && !defined(EMULATOR_THREAD_SANITIZER)

struct Context {
    void* stack_pointer;
};

extern "C" void emulator_switch(void** from, void* to);

// What the ABI has a function keep lies on the stack that is left.
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

inline void switch_context(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

// `entry` never returns; the end of the stack is a multiple of 16.
inline void start_context(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<std::uintptr_t*>(stack + bytes);
    *--top = 0;
    *--top = reinterpret_cast<std::uintptr_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    context.stack_pointer = top;
}

#else

#include <ucontext.h>

struct Context {
    ucontext_t state;
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

inline void start_context(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = bytes;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

#endif
