/* fork_loop PORT WORKERS [ignore]: a process forked for every connection, nothing else. The yardstick. With "ignore" the
   kernel reaps, and the loop never waits. */
#include "common.h"

int main(int argc, char **argv) {
    if (argc < 3) return 64;
    int listener = listen_on(argv[1]), waits = argc == 3;
    if (!waits) signal(SIGCHLD, SIG_IGN);
    prefork(atoi(argv[2]));
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            pid_t pid = fork();
            if (pid == 0) {
                close(listener);
                echo(connection, connection);
                _exit(0);
            }
            close(connection);
        }
        while (waits && waitpid(-1, NULL, WNOHANG) > 0) {}
    }
}
