/* What the reference servers share: a listener on 127.0.0.1, and echo. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int listen_on(const char *port) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* Apache has it by itself: who accepts is woken by the first byte, and not by the handshake. */
    const char *defer = getenv("DEFER_ACCEPT");
    int seconds = defer ? atoi(defer) : 0;
    if (seconds && setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) < 0) die("TCP_DEFER_ACCEPT");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(fd, 4096) < 0) die("listen");
    return fd;
}

/* Sends back what comes until there is no more. */
static inline void echo(int in, int out) {
    char buffer[4096];
    for (;;) {
        ssize_t got = read(in, buffer, sizeof buffer), sent = 0;
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return;
        while (sent < got) {
            ssize_t n = write(out, buffer + sent, got - sent);
            if (n < 0 && errno != EINTR) return;
            if (n > 0) sent += n;
        }
    }
}

/* Forks this process into so many that all go on; the first waits for ever if it is not one of them. */
static inline void prefork(int workers) {
    for (int i = 1; i < workers; i++)
        if (fork() == 0) return;
}
