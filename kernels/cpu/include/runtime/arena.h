/* Large memory: whole huge pages, asked for before the first touch, which is worth 10-20 % of what memory delivers. */
#ifndef OLLAMA_ARENA_H
#define OLLAMA_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

struct arena { char *memory, *mapped; size_t mapped_nbytes; };

#if defined(__SANITIZE_ADDRESS__)

/* From the heap, where AddressSanitizer sees what is read or written outside of it or after its end. Large memory comes from
 * the system as zeros: clearing it would touch 64 MB for every small weight. */
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

static inline int arena_open(struct arena *arena, size_t nbytes)
{
    void *memory = nbytes > (size_t)16 << 30 ? NULL : calloc(1, nbytes);
    if ((uintptr_t)memory % 64) {
        free(memory);
        if (posix_memalign(&memory, 64, nbytes)) memory = NULL;
        if (memory) memset(memory, 0, nbytes);
    }
    *arena = (struct arena){memory, memory, nbytes};
    return memory ? 0 : -1;
}

static inline void arena_forget(void *part, size_t nbytes)
{
    ASAN_POISON_MEMORY_REGION(part, nbytes);
}

static inline void arena_close(struct arena *arena)
{
    free(arena->mapped);
    *arena = (struct arena){0};
}

#else

/* Map nbytes, zeroed and aligned to 64 bytes at least. Returns 0, or -1 when the system has no memory. */
static inline int arena_open(struct arena *arena, size_t nbytes)
{
    int huge = nbytes >= HUGE_PAGE;
    size_t mapped = nbytes + (huge ? HUGE_PAGE : 0);
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *arena = (struct arena){0};
    if (memory == MAP_FAILED) return -1;
    arena->mapped = arena->memory = memory;
    arena->mapped_nbytes = mapped;
    if (huge) {
        arena->memory = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        madvise(arena->memory, nbytes, MADV_HUGEPAGE);
    }
    return 0;
}

/* Give the whole pages within a part of an arena back to the system; the part must not be used again. */
static inline void arena_forget(void *part, size_t nbytes)
{
    uintptr_t begin = ((uintptr_t)part + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)part + nbytes) & ~(uintptr_t)4095;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static inline void arena_close(struct arena *arena)
{
    if (arena->mapped) munmap(arena->mapped, arena->mapped_nbytes);
    *arena = (struct arena){0};
}

#endif

#endif
