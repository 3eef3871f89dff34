// Memory between two pages that nobody may touch.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

class Pages {
public:
    // Memory that begins at a multiple of 16 and has less than 16 bytes behind it.
    Pages(const char* name, std::size_t bytes) : name(name), bytes(bytes) {
        const std::size_t rounded = (bytes + 15) / 16 * 16;
        const std::size_t inner = (rounded + page - 1) / page * page;
        mapped = inner + 2 * page;
        begin = static_cast<unsigned char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (begin == MAP_FAILED || (inner && mprotect(begin + page, inner, PROT_READ | PROT_WRITE))) std::abort();
        data = begin + page + inner - rounded;
        all().insert(this);
    }

    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    ~Pages() {
        all().erase(this);
        munmap(begin, mapped);
    }

    // Fills it, and what lies between it and the pages, with NaN.
    void poison() { std::memset(touchable(), 0xFF, touchable_end() - touchable()); }

    unsigned char* touchable() const { return begin + page; }
    unsigned char* touchable_end() const { return begin + mapped - page; }

    // Where an address lies if it is of a forbidden page, else nothing.
    static std::string describe(const void* address) {
        const auto place = static_cast<const unsigned char*>(address);
        for (const Pages* pages : all()) {
            if (place < pages->begin || place >= pages->begin + pages->mapped) continue;
            const bool before = place < pages->data;
            const std::size_t distance = before ? pages->data - place : place - (pages->data + pages->bytes);
            return std::to_string(distance) + (before ? " bytes before " : " bytes behind the end of ") + pages->name +
                   " of " + std::to_string(pages->bytes) + " bytes";
        }
        return {};
    }

    const char* const name;
    const std::size_t bytes;
    unsigned char* data;

private:
    static std::set<const Pages*>& all() {
        // Never destroyed: the last arrays go at the end of the process.
        static auto& pages = *new std::set<const Pages*>;
        return pages;
    }

    const std::size_t page = sysconf(_SC_PAGESIZE);
    unsigned char* begin;
    std::size_t mapped;
};
