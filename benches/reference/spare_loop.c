/* spare_loop PORT SPARES: processes forked ahead wait in accept, serve one connection each, and are replaced. */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 3) return 64;
    int listener = listen_on(argv[1]), spares = atoi(argv[2]), alive = 0;
    for (;;) {
        while (alive < spares) {
            pid_t pid = fork();
            if (pid == 0) {
                int connection;
                while ((connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0) {}
                close(listener);
                echo(connection, connection);
                _exit(0);
            }
            if (pid < 0) die("fork");
            alive++;
        }
        if (waitpid(-1, NULL, 0) > 0) alive--;
    }
}
