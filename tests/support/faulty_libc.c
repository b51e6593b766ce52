/* A machine's faults, preloaded into its processes: its clock, its names, its disk.

   They are in a file that FAULTY_MACHINE names and faulty_libc.py writes. All processes map it, so
   that a change takes effect at once. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAMES 2
#define LENGTH 64

enum { DISK_HAS_ROOM, DISK_IS_FULL, DISK_IS_FULL_LATE };

struct machine {
    _Atomic int64_t clock_error; /* nanoseconds */
    _Atomic int64_t disk;
    struct {
        char name[LENGTH];
        char address[LENGTH]; /* "" while the name is not known */
    } hosts[NAMES];
};

static const volatile struct machine *machine;

__attribute__((constructor)) static void map_machine(void) {
    const char *path = getenv("FAULTY_MACHINE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *machine, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED)
        machine = found;
    close(file);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (machine && !result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t sum = now->tv_nsec + machine->clock_error % 1000000000;
        now->tv_sec += machine->clock_error / 1000000000 + (sum >= 1000000000) - (sum < 0);
        now->tv_nsec = (sum + 1000000000) % 1000000000;
    }
    return result;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    REAL(getaddrinfo);
    for (int each = 0; machine && name && each < NAMES; each++) {
        char address[LENGTH];
        if (strcmp(name, (const char *)machine->hosts[each].name))
            continue;
        memcpy(address, (const char *)machine->hosts[each].address, LENGTH);
        return *address ? real(address, service, hints, found) : EAI_AGAIN;
    }
    return real(name, service, hints, found);
}

static int has_disk(int file) {
    struct stat status;
    return machine && machine->disk && !fstat(file, &status) && S_ISREG(status.st_mode);
}

static int full(void) {
    errno = ENOSPC;
    return -1;
}

/* The disk is full: half of what is left to write fits, then nothing. */
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(pwrite64);
    if (!has_disk(file) || machine->disk != DISK_IS_FULL)
        return real(file, bytes, count, offset);
    return count > 512 ? real(file, bytes, count / 2, offset) : full();
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    return pwrite64(file, bytes, count, offset);
}

/* The disk accepts writes, and has no room for them after all. */
int fsync(int file) {
    REAL(fsync);
    return has_disk(file) ? full() : real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    return has_disk(file) ? full() : real(file);
}
