/* thread_loop PORT: a thread for every connection, in one process. */
#include "common.h"
#include <pthread.h>

static void *serve(void *connection) {
    int fd = (int)(long)connection;
    echo(fd, fd);
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) return 64;
    int listener = listen_on(argv[1]);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        pthread_t thread;
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0 && pthread_create(&thread, &detached, serve, (void *)(long)connection) != 0)
            close(connection);
    }
}
