// Faults of memory, caught for as long as a launch runs; sanitizers have handlers of their own, which say more.

#pragma once

#include <csignal>

#include "pages.h"

#if !defined(EMULATOR_THREAD_SANITIZER) && !defined(EMULATOR_ADDRESS_SANITIZER)

class FaultsCaught {
public:
    explicit FaultsCaught(void (*handler)(int, siginfo_t*, void*)) {
        stack_t own = {};
        own.ss_sp = stack.data;
        own.ss_size = stack.bytes;
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = handler;
        // The handler leaves for another stack and never returns, so that its signal must not stay blocked.
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &segv_before);
        sigaction(SIGBUS, &action, &bus_before);
    }

    FaultsCaught(const FaultsCaught&) = delete;
    FaultsCaught& operator=(const FaultsCaught&) = delete;

    ~FaultsCaught() {
        sigaction(SIGSEGV, &segv_before, nullptr);
        sigaction(SIGBUS, &bus_before, nullptr);
        sigaltstack(&stack_before, nullptr);
    }

private:
    Pages stack{"the fault handler's stack", 64 * 1024};
    stack_t stack_before;
    struct sigaction segv_before, bus_before;
};

#else

struct FaultsCaught {
    explicit FaultsCaught(void (*)(int, siginfo_t*, void*)) {}
};

#endif
