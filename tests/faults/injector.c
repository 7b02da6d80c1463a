/* Preloaded into a process: once armed, its calls that change a folder are counted, and one of them is a fault.
 *
 * Calls are open for writing, write, fsync, rename, link, mkdir and unlink on paths below the folder. The call with the
 * number `at` (from 1; 0 for none) ends the process (KILL), ends it in the middle of the write (TORN), or fails with an
 * error number; with `lasting` so does every later one that needs room. Each call is written to the log as "name path".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { KILL = -1, TORN = -2 };
#define TEAR (-2)

static char folder[PATH_MAX];
static long at, calls, clock_offset_s;
static int action, lasting, log_fd = -1, armed;

void faults_arm(const char *below, long number, int what, int goes_on, const char *log_path) {
    snprintf(folder, sizeof folder, "%s", below);
    at = number, action = what, lasting = goes_on, calls = 0;
    log_fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    armed = 1;
}

void faults_set_clock(long offset_s) { clock_offset_s = offset_s; }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; TEAR: write half, then die; otherwise the error number to fail with. */
static int fault(const char *name, const char *path, int needs_room) {
    if (!armed || strncmp(path, folder, strlen(folder))) return 0;
    long number = __sync_add_and_fetch(&calls, 1);
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    syscall(SYS_write, log_fd, line, length);
    if (number == at && action == KILL) die();
    if (number == at && action == TORN) return strcmp(name, "write") ? (die(), 0) : TEAR;
    if (action > 0 && (number == at || (lasting && at && number > at && needs_room))) return action;
    return 0;
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *path_at(int dir_fd, const char *name, char *path) {
    if (name[0] == '/') return name;
    if (dir_fd == AT_FDCWD) {
        if (!getcwd(path, PATH_MAX)) path[0] = 0;
    } else
        path_of(dir_fd, path);
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return path;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL_AT(name, path, needs_room) \
    do { int number_ = fault(name, path, needs_room); if (number_ > 0) { errno = number_; return -1; } } while (0)

#define OPEN(function) \
    int function(const char *name, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest); \
        REAL(function); char path[PATH_MAX]; \
        if (armed && flags & (O_CREAT | O_WRONLY | O_RDWR)) FAIL_AT("open", path_at(AT_FDCWD, name, path), 1); \
        return real(name, flags, mode); }
#define OPENAT(function) \
    int function(int dir, const char *name, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest); \
        REAL(function); char path[PATH_MAX]; \
        if (armed && flags & (O_CREAT | O_WRONLY | O_RDWR)) FAIL_AT("open", path_at(dir, name, path), 1); \
        return real(dir, name, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define WRITE(result, parameters, fd, call, half) \
    result parameters { \
        char path[PATH_MAX]; \
        if (armed) { int number = fault("write", path_of(fd, path), 1); \
            if (number == TEAR) { half; die(); } \
            if (number > 0) { errno = number; return -1; } } \
        call; }
WRITE(ssize_t write, (int fd, const void *data, size_t size), fd, REAL(write); return real(fd, data, size),
      syscall(SYS_write, fd, data, size / 2))
WRITE(ssize_t pwrite64, (int fd, const void *data, size_t size, off64_t where), fd,
      REAL(pwrite64); return real(fd, data, size, where), syscall(SYS_pwrite64, fd, data, size / 2, where))
WRITE(ssize_t writev, (int fd, const struct iovec *parts, int count), fd, REAL(writev); return real(fd, parts, count),
      syscall(SYS_write, fd, parts[0].iov_base, parts[0].iov_len / 2))
WRITE(ssize_t sendfile, (int fd, int from, off_t *where, size_t size), fd,
      REAL(sendfile); return real(fd, from, where, size), syscall(SYS_sendfile, fd, from, where, size / 2))
WRITE(ssize_t sendfile64, (int fd, int from, off64_t *where, size_t size), fd,
      REAL(sendfile64); return real(fd, from, where, size), syscall(SYS_sendfile, fd, from, where, size / 2))
WRITE(ssize_t copy_file_range, (int from, off64_t *a, int fd, off64_t *b, size_t size, unsigned flags), fd,
      REAL(copy_file_range); return real(from, a, fd, b, size, flags),
      syscall(SYS_copy_file_range, from, a, fd, b, size / 2, flags))

int fsync(int fd) { REAL(fsync); char path[PATH_MAX]; if (armed) FAIL_AT("fsync", path_of(fd, path), 1); return real(fd); }
int rename(const char *a, const char *b) {
    REAL(rename); char path[PATH_MAX]; FAIL_AT("rename", path_at(AT_FDCWD, b, path), 0); return real(a, b); }
int renameat(int x, const char *a, int y, const char *b) {
    REAL(renameat); char path[PATH_MAX]; FAIL_AT("rename", path_at(y, b, path), 0); return real(x, a, y, b); }
int link(const char *a, const char *b) {
    REAL(link); char path[PATH_MAX]; FAIL_AT("link", path_at(AT_FDCWD, b, path), 1); return real(a, b); }
int linkat(int x, const char *a, int y, const char *b, int flags) {
    REAL(linkat); char path[PATH_MAX]; FAIL_AT("link", path_at(y, b, path), 1); return real(x, a, y, b, flags); }
int mkdir(const char *name, mode_t mode) {
    REAL(mkdir); char path[PATH_MAX]; FAIL_AT("mkdir", path_at(AT_FDCWD, name, path), 1); return real(name, mode); }
int unlink(const char *name) {
    REAL(unlink); char path[PATH_MAX]; FAIL_AT("unlink", path_at(AT_FDCWD, name, path), 0); return real(name); }
int unlinkat(int dir, const char *name, int flags) {
    REAL(unlinkat); char path[PATH_MAX]; FAIL_AT("unlink", path_at(dir, name, path), 0); return real(dir, name, flags); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += clock_offset_s;
    return result;
}
