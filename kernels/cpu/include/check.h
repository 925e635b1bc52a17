/* Checks of indices, in debug builds (tox -e debug, tox -e asan) and nowhere else: a wrong one says so and ends the process.
 *
 * What limits an index has to be known where it is used. Jobs carry such limits in members that only debug builds have (CHECKED);
 * those of a program's ops (steps.h) are always there, since they are set once.
 */
#ifndef OLLAMA_CHECK_H
#define OLLAMA_CHECK_H

#include <stddef.h>

#ifdef OLLAMA_CHECK_INDICES
#include <stdio.h>
#include <stdlib.h>

enum { CHECKS_INDICES = 1 };
#define CHECKED(...) __VA_ARGS__
#define CHECK_INDEX(index, count) check_index((size_t)(index), (size_t)(count), #index, #count, __FILE__, __LINE__)

static inline void check_index(size_t index, size_t count, const char *name, const char *limit, const char *file, int line)
{
    if (index < count) return;
    fprintf(stderr, "%s:%d: index out of range: %s = %zu, %s = %zu\n", file, line, name, index, limit, count);
    abort();
}
#else
enum { CHECKS_INDICES = 0 };
#define CHECKED(...)
#define CHECK_INDEX(index, count) ((void)0)
#endif

/* That what ends at `end` is inside of `size`. */
#define CHECK_END(end, size) CHECK_INDEX(end, (size) + 1)

#endif
