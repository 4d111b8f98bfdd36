/* SPDX-License-Identifier: Apache-2.0
 *
 * A library to be preloaded. It makes the n-th call of a kind on files of a folder fail, as on a
 * disk that is full or broken. Calls on other files (the terminal, libraries, pipes) succeed.
 *
 *   fault_arm(folder, kind, nth, code, lasts)   sets the call that fails; nth 0: only count calls
 *   fault_count(kind)                           returns the calls of a kind since fault_arm
 *
 * If the kind is SHORT, the n-th write writes only half of its bytes, as on a disk that becomes
 * full; a write of one byte and a writev fail. If `lasts` is set, the same happens in all later
 * calls of this kind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, SHORT, FSYNC, RENAME, OPEN, UNLINK, TRUNCATE, MKDIR, NUM_KINDS };

static char folder[PATH_MAX];
static size_t folder_length;
static int armed_kind = -1, armed_code, armed_lasts;
static long armed_nth;
static atomic_long counts[NUM_KINDS];

void fault_arm(const char *path, int kind, long nth, int code, int lasts) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    armed_nth = nth;
    armed_code = code;
    armed_lasts = lasts;
    for (int k = 0; k < NUM_KINDS; k++) counts[k] = 0;
    armed_kind = kind;
}

long fault_count(int kind) { return counts[kind]; }

static int is_inside(const char *path) {
    return armed_kind >= 0 && strncmp(path, folder, folder_length) == 0 &&
           (path[folder_length] == '/' || path[folder_length] == 0);
}

/* A relative path begins at the current folder, or at the folder of the descriptor `at`. */
static int concerns(int at, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    if (armed_kind < 0 || path == NULL) return 0;
    if (path[0] == '/') return is_inside(path);
    ssize_t length;
    if (at == AT_FDCWD) {
        if (getcwd(whole, PATH_MAX) == NULL) return 0;
        length = (ssize_t)strlen(whole);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        length = readlink(link, whole, PATH_MAX);
        if (length < 0) return 0;
    }
    snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path);
    return is_inside(whole);
}

static int concerns_open(int descriptor) {
    char path[PATH_MAX], link[64];
    if (armed_kind < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_inside(path);
}

/* Counts a call; returns whether it must fail. */
static int fails(int kind) {
    const long nth = atomic_fetch_add(&counts[kind], 1) + 1;
    if (kind != armed_kind || armed_nth == 0) return 0;
    return nth == armed_nth || (armed_lasts && nth > armed_nth);
}

static int refuse(void) {
    errno = armed_code;
    return -1;
}

#define REAL(result, name, ...)                                                                    \
    static result (*real)(__VA_ARGS__);                                                            \
    if (real == NULL) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* ---- Writes ---------------------------------------------------------------------------------- */

/* Returns how many bytes a write may write; -1: the write fails. */
static ssize_t allowed(int descriptor, size_t num_bytes) {
    if (!concerns_open(descriptor)) return (ssize_t)num_bytes;
    if (fails(WRITE)) return -1;
    if (!fails(SHORT)) return (ssize_t)num_bytes;
    if (num_bytes < 2) return -1;
    return (ssize_t)(num_bytes / 2);
}

ssize_t write(int descriptor, const void *bytes, size_t num_bytes) {
    REAL(ssize_t, "write", int, const void *, size_t);
    const ssize_t num = allowed(descriptor, num_bytes);
    return num < 0 ? refuse() : real(descriptor, bytes, (size_t)num);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t num_bytes, off_t offset) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    const ssize_t num = allowed(descriptor, num_bytes);
    return num < 0 ? refuse() : real(descriptor, bytes, (size_t)num, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t num_bytes, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    const ssize_t num = allowed(descriptor, num_bytes);
    return num < 0 ? refuse() : real(descriptor, bytes, (size_t)num, offset);
}

ssize_t writev(int descriptor, const struct iovec *pieces, int num_pieces) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return allowed(descriptor, 1) < 0 ? refuse() : real(descriptor, pieces, num_pieces);
}

int ftruncate(int descriptor, off_t length) {
    REAL(int, "ftruncate", int, off_t);
    return concerns_open(descriptor) && fails(TRUNCATE) ? refuse() : real(descriptor, length);
}

int ftruncate64(int descriptor, off64_t length) {
    REAL(int, "ftruncate64", int, off64_t);
    return concerns_open(descriptor) && fails(TRUNCATE) ? refuse() : real(descriptor, length);
}

int fsync(int descriptor) {
    REAL(int, "fsync", int);
    return concerns_open(descriptor) && fails(FSYNC) ? refuse() : real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(int, "fdatasync", int);
    return concerns_open(descriptor) && fails(FSYNC) ? refuse() : real(descriptor);
}

/* ---- Names ----------------------------------------------------------------------------------- */

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return concerns(AT_FDCWD, to) && fails(RENAME) ? refuse() : real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return concerns(to_at, to) && fails(RENAME) ? refuse() : real(from_at, from, to_at, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return concerns(AT_FDCWD, path) && fails(UNLINK) ? refuse() : real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    return concerns(at, path) && fails(UNLINK) ? refuse() : real(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return concerns(AT_FDCWD, path) && fails(MKDIR) ? refuse() : real(path, mode);
}

#define MODE(flags)                                                                                \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }

int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    MODE(flags)
    return concerns(AT_FDCWD, path) && fails(OPEN) ? refuse() : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    MODE(flags)
    return concerns(AT_FDCWD, path) && fails(OPEN) ? refuse() : real(path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    MODE(flags)
    return concerns(at, path) && fails(OPEN) ? refuse() : real(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, ...);
    MODE(flags)
    return concerns(at, path) && fails(OPEN) ? refuse() : real(at, path, flags, mode);
}
