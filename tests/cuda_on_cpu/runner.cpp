// Runs one launch in a process of its own: what sanitizers find ends it. Usage: runner LIBRARY LAUNCH.
//
// LAUNCH is a file of 64-bit numbers, then bytes: shape (6), shared bytes, schedule, count of arguments, count of
// arrays, length of the types' text; every argument as array or -1, and value or offset in the array; every array as
// address and bytes; the text; the arrays, which are written back.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <dlfcn.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

using Launch = const char* (*)(const unsigned*, unsigned, unsigned, void**, const char*);

// Device memory begins at multiples of 256; an array's place there is kept.
constexpr std::uint64_t ALIGNMENT = 256;

static char* array_like(std::uint64_t address, std::uint64_t bytes) {
    void* memory;
    const std::uint64_t before = address % ALIGNMENT;
    if (posix_memalign(&memory, ALIGNMENT, before + bytes)) std::abort();
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(memory, before);
#endif
    return static_cast<char*>(memory) + before;
}

int main(int count, char** arguments) {
    if (count != 3) return std::fprintf(stderr, "usage: runner LIBRARY LAUNCH\n"), 2;
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
    const auto launch = reinterpret_cast<Launch>(dlsym(library, "launch"));
    std::fstream file(arguments[2], std::ios::in | std::ios::out | std::ios::binary);
    const auto numbers = [&file](std::uint64_t length) {
        std::vector<std::uint64_t> values(length);
        file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(8 * length));
        return values;
    };
    const auto header = numbers(11), given = numbers(2 * header[8]), sizes = numbers(2 * header[9]);
    std::string types(header[10], ' ');
    file.read(types.data(), static_cast<std::streamsize>(types.size()));
    const std::streamoff data = file.tellg();

    std::vector<char*> arrays;
    for (std::uint64_t i = 0; i < header[9]; ++i) {
        arrays.push_back(array_like(sizes[2 * i], sizes[2 * i + 1]));
        file.read(arrays[i], static_cast<std::streamsize>(sizes[2 * i + 1]));
    }
    std::vector<std::uint64_t> values;
    for (std::uint64_t i = 0; i < header[8]; ++i) {
        const auto array = static_cast<std::int64_t>(given[2 * i]);
        const std::uint64_t begin = array < 0 ? 0 : reinterpret_cast<std::uintptr_t>(arrays[array]);
        values.push_back(begin + given[2 * i + 1]);
    }
    std::vector<void*> pointers;
    for (std::uint64_t& value : values) pointers.push_back(&value);
    const std::vector<unsigned> shape(header.begin(), header.begin() + 6);

    const char* error = launch(shape.data(), header[6], header[7], pointers.data(), types.c_str());
    if (error) return std::fprintf(stderr, "%s\n", error), 1;
    file.seekp(data);
    for (std::uint64_t i = 0; i < header[9]; ++i)
        file.write(arrays[i], static_cast<std::streamsize>(sizes[2 * i + 1]));
    return file.flush() ? 0 : 2;
}
