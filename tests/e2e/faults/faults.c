/* Faults at the effects of a daemon, for LD_PRELOAD (scripts/harness/faults.py says what is wanted).
 *
 * Each call that changes something outside of the process passes `effect` first: it is counted, and either the process
 * ends there as if the power were cut, or the call fails with an error of the test's choice. What the daemon starts
 * runs without. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* faults.py knows this layout. */
struct orders {
    _Atomic uint64_t effects; /* counted so far */
    _Atomic uint64_t kill_at; /* end the process before this one; 0: never */
    _Atomic uint64_t failed;  /* calls that were made to fail */
    _Atomic uint32_t error;   /* the errno of calls that match; 0: none fails */
    char call[32];            /* which call fails */
    char path[256];           /* part of the path it has to be about */
    char killed[288];         /* the effect that was not to be */
};

static struct orders *orders;

__attribute__((constructor)) static void take_orders(void)
{
    const char *path = getenv("DORMOUSE_FAULTS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (mapped != MAP_FAILED)
            orders = mapped;
    }
    unsetenv("LD_PRELOAD");
    unsetenv("DORMOUSE_FAULTS");
}

/* Whether the call is to fail. Does not return when the process ends here. */
static int effect(const char *call, const char *path)
{
    if (!orders)
        return 0;
    if (atomic_fetch_add(&orders->effects, 1) + 1 == atomic_load(&orders->kill_at)) {
        snprintf(orders->killed, sizeof orders->killed, "%s %s", call, path);
        kill(getpid(), SIGKILL);
    }
    int error = atomic_load(&orders->error);
    if (!error || strcmp(call, orders->call) || !strstr(path, orders->path))
        return 0;
    atomic_fetch_add(&orders->failed, 1);
    errno = error;
    return 1;
}

static int effect_on(const char *call, int file)
{
    char link[32], path[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return effect(call, path);
}

/* Files, and sockets on this host: answers to clients are no effects, and neither is the log. */
static int is_kept(int file)
{
    struct stat stat;
    int saved = errno, domain = 0, kept = 0;
    socklen_t length = sizeof domain;
    if (file > STDERR_FILENO && !fstat(file, &stat))
        kept = S_ISREG(stat.st_mode) ||
            (S_ISSOCK(stat.st_mode) && !getsockopt(file, SOL_SOCKET, SO_DOMAIN, &domain, &length) && domain == AF_UNIX);
    errno = saved;
    return kept;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ON_PATH(name, parameters, arguments, path)                  \
    int name parameters                                             \
    {                                                               \
        return effect(#name, path) ? -1 : REAL(name) arguments;     \
    }

#define ON_FILE(type, name, parameters, arguments, when)                        \
    type name parameters                                                        \
    {                                                                           \
        return (when) && effect_on(#name, file) ? -1 : REAL(name) arguments;    \
    }

ON_PATH(rename, (const char *from, const char *to), (from, to), from)
ON_PATH(unlink, (const char *path), (path), path)
ON_PATH(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), path)
ON_PATH(rmdir, (const char *path), (path), path)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
ON_PATH(symlink, (const char *to, const char *path), (to, path), path)
ON_PATH(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), to)
ON_FILE(int, fsync, (int file), (file), 1)
ON_FILE(int, fdatasync, (int file), (file), 1)
ON_FILE(int, ftruncate64, (int file, off64_t length), (file, length), 1)
ON_FILE(ssize_t, write, (int file, const void *from, size_t length), (file, from, length), is_kept(file))
ON_FILE(ssize_t, writev, (int file, const struct iovec *from, int count), (file, from, count), is_kept(file))
ON_FILE(ssize_t, send, (int file, const void *from, size_t length, int flags), (file, from, length, flags), is_kept(file))
ON_FILE(ssize_t, pwrite64, (int file, const void *from, size_t length, off64_t at), (file, from, length, at), is_kept(file))

int open64(const char *path, int flags, ...)
{
    __builtin_va_list more;
    __builtin_va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? __builtin_va_arg(more, mode_t) : 0;
    __builtin_va_end(more);
    return flags & O_CREAT && effect("open64", path) ? -1 : REAL(open64)(path, flags, mode);
}

pid_t fork(void)
{
    return effect("fork", "") ? -1 : REAL(fork)();
}

int posix_spawnp(pid_t *pid, const char *program, const posix_spawn_file_actions_t *actions,
    const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[])
{
    return effect("posix_spawnp", program) ? errno : REAL(posix_spawnp)(pid, program, actions, attributes, arguments, environment);
}
