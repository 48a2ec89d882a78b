/* exec_loop PORT WORKERS PROGRAM: vfork and exec for every connection, nothing else. */
#include "common.h"

extern char **environ;

int main(int argc, char **argv) {
    if (argc != 4) return 64;
    int listener = listen_on(argv[1]);
    prefork(atoi(argv[2]));
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            pid_t pid = vfork();
            if (pid == 0) {
                char *arguments[] = { argv[3], NULL };
                dup2(connection, 0);
                dup2(connection, 1);
                execve(argv[3], arguments, environ);
                _exit(127);
            }
            close(connection);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
}
