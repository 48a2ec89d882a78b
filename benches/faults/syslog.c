/* Preloaded into servers that log with syslog(3): their lines go to the descriptor that SYSLOG_FD names, to be counted. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void vsyslog(int priority, const char *format, va_list arguments) {
    const char *fd = getenv("SYSLOG_FD");
    (void)priority;
    if (!fd) return;
    vdprintf(atoi(fd), format, arguments);
    dprintf(atoi(fd), "\n");
}

void syslog(int priority, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsyslog(priority, format, arguments);
    va_end(arguments);
}

void __syslog_chk(int priority, int flag, const char *format, ...) {
    va_list arguments;
    (void)flag;
    va_start(arguments, format);
    vsyslog(priority, format, arguments);
    va_end(arguments);
}

void __vsyslog_chk(int priority, int flag, const char *format, va_list arguments) {
    (void)flag;
    vsyslog(priority, format, arguments);
}
