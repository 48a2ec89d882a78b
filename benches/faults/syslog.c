/* Preloaded into servers that log with syslog(3): counts their lines in the first word of the file SYSLOG_COUNT. It is
 * mapped, because servers close what they do not know, and some here have no descriptor left. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned long *lines;

__attribute__((constructor)) static void map(void) {
    const char *path = getenv("SYSLOG_COUNT");
    int fd = path ? open(path, O_RDWR) : -1;
    void *word = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (word != MAP_FAILED) lines = word;
    if (fd >= 0) close(fd);
}

static void count(void) {
    if (lines) __atomic_add_fetch(lines, 1, __ATOMIC_RELAXED);
}

void syslog(int priority, const char *format, ...) {
    (void)priority, (void)format;
    count();
}

void vsyslog(int priority, const char *format, va_list arguments) {
    (void)priority, (void)format, (void)arguments;
    count();
}

void __syslog_chk(int priority, int flag, const char *format, ...) {
    (void)priority, (void)flag, (void)format;
    count();
}

void __vsyslog_chk(int priority, int flag, const char *format, va_list arguments) {
    (void)priority, (void)flag, (void)format, (void)arguments;
    count();
}
