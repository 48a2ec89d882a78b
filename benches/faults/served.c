/* What every server serves here. It does what the client's line says. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void say(long number) {
    printf("%ld\n", number);
    fflush(stdout);
}

/* Waits for ever, deaf to the end of its connection and to polite signals. */
static void stay(void) {
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    say(getpid());
    for (;;) pause();
}

int main(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "pid\n")) say(getpid());
        if (!strcmp(line, "crash\n")) raise(SIGSEGV);
        if (!strcmp(line, "stay\n")) stay();
        /* Leaves a child behind that has the connection. */
        if (!strcmp(line, "leave\n")) {
            if (fork() == 0) stay();
            return 0;
        }
        /* Answers a second after the client's half of the connection has ended. */
        if (!strcmp(line, "count\n")) {
            long bytes = 0;
            while (getchar() != EOF) bytes++;
            sleep(1);
            say(bytes);
            return 0;
        }
    }
    return 0;
}
