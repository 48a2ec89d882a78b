/* epoll_loop PORT: one process and one loop over events for all connections. The other end of the scale. */
#include "common.h"
#include <sys/epoll.h>

int main(int argc, char **argv) {
    if (argc != 2) return 64;
    int listener = listen_on(argv[1]), poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, events[256];
    signal(SIGPIPE, SIG_IGN);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (connection < 0) continue;
                event.data.fd = connection;
                epoll_ctl(poller, EPOLL_CTL_ADD, connection, &event);
                continue;
            }
            char buffer[4096];
            ssize_t got = read(fd, buffer, sizeof buffer);
            /* 16 bytes always fit into the send buffer. */
            if (got <= 0 || write(fd, buffer, got) != got) close(fd);
        }
    }
}
