// What programs do that show a title of their own: they take where their arguments and environment were, and find its end in one of two
// ways. tests/suite/warm/mod.rs.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what) {
    dprintf(1, "wrong: %s\n", what);
    _exit(1);
}

int main(int count, char **arguments) {
    char line[64], *end = arguments[0];
    int number = 0;
    size_t sum = 0;
    // vsftpd: the sum of all lengths.
    for (int i = 0; i < count; i++) sum += strlen(arguments[i]) + 1;
    for (; environ[number]; number++) sum += strlen(environ[number]) + 1;
    if (!number) fail("no variables");
    // sendmail, ftpd of BSD: the end of the last variable.
    char *last = environ[number - 1] + strlen(environ[number - 1]);
    // PostgreSQL: as long as one is behind the other.
    for (int i = 0; i < count; i++) if (arguments[i] == end) end += strlen(end) + 1;
    for (int i = 0; i < number; i++) if (environ[i] == end) end += strlen(end) + 1;
    if (end - 1 != last) fail("they are not one behind the other");
    if (end - arguments[0] != (long)sum) fail("their lengths");

    // What stands in /proc/PID/environ is there, too.
    const char *caller = getenv("TCPREMOTEIP");
    char own[8192], *found = own;
    FILE *file = fopen("/proc/self/environ", "r");
    size_t length = file ? fread(own, 1, sizeof own - 1, file) : 0;
    own[length] = 0;
    for (int i = 0; i < number; i++, found += strlen(found) + 1)
        if (found >= own + length || strcmp(found, environ[i])) fail("/proc/self/environ");
    if (found < own + length && *found) fail("more in /proc/self/environ");

    char **copies = calloc(number + 1, sizeof *copies), *shown = strdup(caller ? caller : "nobody");
    for (int i = 0; i < number; i++) copies[i] = strdup(environ[i]);
    environ = copies;
    char *title = arguments[0];
    memset(title, 'x', last - title);
    strcpy(title, "a title");
    int got = read(0, line, sizeof line);
    dprintf(1, "right: %s %.*s", shown, got, line);
    return strcmp(title, "a title");
}
