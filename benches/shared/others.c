// What else processes can count and lock with: a robust mutex of pthreads, a file lock, a server process, Redis.
// usage: others KIND PROCESSES MILLISECONDS [PATH or PORT]
//
// So many processes, on one CPU after the other, do it for so long, once all have been at it for a while; what they did a second, and what the least and the most busy of them did, is printed. A lock
// guards a number to which each adds 1, so that one that does not hold is found.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64 };

struct shared {
    _Atomic int ready, phase; // 0: not yet; 1: not counted; 2: counted; 3: the end
    pthread_mutex_t mutex;
    volatile unsigned long value __attribute__((aligned(64)));
    struct { unsigned long done, all; char line[48]; } of[MOST];
};

static struct shared *shared;
static const char *where;
static int number, file;
static int pairs[MOST][2];

static void sure(int is_well, const char *what) {
    if (is_well) return;
    fprintf(stderr, "others: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void nothing(void) {}

// Pthreads.

static void make_mutex(int protocol) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    sure(pthread_mutex_init(&shared->mutex, &attributes) == 0, "mutex");
}

static void mutex_prepare(void) { make_mutex(PTHREAD_PRIO_NONE); }
static void pi_prepare(void) { make_mutex(PTHREAD_PRIO_INHERIT); }

static void mutex(void) {
    sure(pthread_mutex_lock(&shared->mutex) == 0, "lock");
    shared->value++;
    pthread_mutex_unlock(&shared->mutex);
}

// File locks.

static void file_open(void) { sure((file = open(where, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0, where); }

static void with_flock(void) {
    sure(flock(file, LOCK_EX) == 0, "flock");
    shared->value++;
    flock(file, LOCK_UN);
}

static void with_ofd(void) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    sure(fcntl(file, F_OFD_SETLKW, &whole) == 0, "F_OFD_SETLKW");
    shared->value++;
    whole.l_type = F_UNLCK;
    fcntl(file, F_OFD_SETLK, &whole);
}

// A server process at the other end of Unix sockets: it adds 1, or gives a lock to whoever has asked first.

static void serve(int clients) {
    struct pollfd polled[MOST];
    int queue[MOST], first = 0, waiting = 0, owner = -1;
    unsigned long count = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < clients; i++) polled[i] = (struct pollfd){.fd = pairs[i][0], .events = POLLIN};
    for (;;) {
        sure(poll(polled, clients, -1) > 0, "poll");
        for (int i = 0; i < clients; i++) {
            char what;
            if (!polled[i].revents) continue;
            if (read(polled[i].fd, &what, 1) != 1) { polled[i].fd = -1; continue; }
            if (what == '+') {
                count++;
                sure(write(polled[i].fd, &count, sizeof count) == sizeof count, "answer");
                continue;
            }
            if (what == 'L') queue[(first + waiting++) % MOST] = i;
            else owner = -1;
            if (owner < 0 && waiting > 0) {
                owner = queue[first];
                first = (first + 1) % MOST;
                waiting--;
                sure(write(pairs[owner][0], "L", 1) == 1, "answer");
            }
        }
    }
}

static void server_prepare(void) {
    for (int i = 0; i < number; i++) sure(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]) == 0, "socketpair");
    if (fork() == 0) serve(number);
}

static int me;

static void ask(void) {
    unsigned long count;
    sure(write(pairs[me][1], "+", 1) == 1 && read(pairs[me][1], &count, sizeof count) == sizeof count, "server");
}

static void server_lock(void) {
    char granted;
    sure(write(pairs[me][1], "L", 1) == 1 && read(pairs[me][1], &granted, 1) == 1, "server");
    shared->value++;
    sure(write(pairs[me][1], "U", 1) == 1, "server");
}

// Redis, over TCP on loopback.

static int redis;

static void redis_open(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(where)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    redis = socket(AF_INET, SOCK_STREAM, 0);
    sure(connect(redis, (struct sockaddr *)&address, sizeof address) == 0, "redis");
    setsockopt(redis, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static char redis_ask(const char *command) {
    char answer[128];
    size_t length = strlen(command);
    sure(write(redis, command, length) == (ssize_t)length && read(redis, answer, sizeof answer) > 0, "redis");
    sure(answer[0] != '-', answer);
    return answer[0];
}

static void redis_count(void) { redis_ask("*2\r\n$4\r\nINCR\r\n$1\r\nc\r\n"); }

// Not held for longer than 30 s by one who has died. Whoever does not get it asks again: Redis has no queue for that.
static void redis_lock(void) {
    while (redis_ask("*6\r\n$3\r\nSET\r\n$1\r\nl\r\n$1\r\n1\r\n$2\r\nNX\r\n$2\r\nPX\r\n$5\r\n30000\r\n") != '+') {}
    shared->value++;
    redis_ask("*2\r\n$3\r\nDEL\r\n$1\r\nl\r\n");
}

static const struct {
    const char *name;
    void (*once)(void), (*begin)(void), (*work)(void);
    int guards;
} KINDS[] = {
    {"mutex", mutex_prepare, nothing, mutex, 1},
    {"pi-mutex", pi_prepare, nothing, mutex, 1},
    {"flock", nothing, file_open, with_flock, 1},
    {"ofd", nothing, file_open, with_ofd, 1},
    {"server-count", server_prepare, nothing, ask, 0},
    {"server-lock", server_prepare, nothing, server_lock, 1},
    {"redis-count", nothing, redis_open, redis_count, 0},
    {"redis-lock", nothing, redis_open, redis_lock, 1},
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    size_t kind = 0;
    if (argc < 4 || (number = atoi(argv[2])) < 1 || number > MOST) return 64;
    while (kind < sizeof KINDS / sizeof *KINDS && strcmp(KINDS[kind].name, argv[1])) kind++;
    if (kind == sizeof KINDS / sizeof *KINDS) return 64;
    where = argc > 4 ? argv[4] : "";
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sure(shared != MAP_FAILED, "mmap");
    KINDS[kind].once();
    pid_t children[MOST];
    for (me = 0; me < number; me++) {
        if ((children[me] = fork()) == 0) {
            unsigned long done = 0, all = 0;
            int phase;
            cpu_set_t here;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            CPU_ZERO(&here);
            CPU_SET(me % sysconf(_SC_NPROCESSORS_ONLN), &here);
            sched_setaffinity(0, sizeof here, &here);
            KINDS[kind].begin();
            shared->ready++;
            while (!shared->phase) usleep(100);
            while ((phase = atomic_load_explicit(&shared->phase, memory_order_relaxed)) < 3) {
                KINDS[kind].work();
                all++;
                done += phase == 2;
            }
            shared->of[me].done = done;
            shared->of[me].all = all;
            _exit(0);
        }
    }
    while (shared->ready < number) usleep(100);
    shared->phase = 1;
    usleep(100 * 1000);
    double start = now();
    shared->phase = 2;
    usleep(atoi(argv[3]) * 1000);
    shared->phase = 3;
    double end = now();
    unsigned long sum = 0, all = 0, least = -1, most = 0;
    for (int i = 0; i < number; i++) {
        int status;
        sure(waitpid(children[i], &status, 0) == children[i] && status == 0, "a process");
        unsigned long done = shared->of[i].done;
        sum += done;
        all += shared->of[i].all;
        if (done < least) least = done;
        if (done > most) most = done;
    }
    if (KINDS[kind].guards && shared->value != all) {
        fprintf(stderr, "others: %s: %lu of %lu\n", argv[1], shared->value, all);
        return 1;
    }
    printf("%.0f %lu %lu\n", sum / (end - start), least, most);
    return 0;
}
