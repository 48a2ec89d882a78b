// What a program can do before it first asks for its connection, and what must be so after: tests/suite/warm/mod.rs.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int sys_calls, usr_calls, alarms, on_alternate;
static char alternate[1 << 16];
static const char first_page[1 << 14] = {1};

static void fail(const char *what) {
    dprintf(1, "wrong: %s (%s)\n", what, strerror(errno));
    _exit(1);
}

static void on_sys(int signal) { sys_calls += signal == SIGSYS; }

static void on_usr(int signal) {
    char here;
    usr_calls += signal == SIGUSR1;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
}

static void on_alarm(int signal) { alarms += signal == SIGALRM; }

static void *thread(void *argument) { return argument; }

// getpid(2), by another table, whose number 20 is writev(2) in this one.
static int pid_by_32_bits(void) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    return result;
}

static void action(int signal, void (*handler)(int), int flags, int blocks) {
    struct sigaction wanted = {.sa_handler = handler, .sa_flags = flags}, found;
    if (blocks) sigaddset(&wanted.sa_mask, blocks);
    if (sigaction(signal, &wanted, NULL)) fail("sigaction");
    if (sigaction(signal, NULL, &found)) fail("sigaction");
    if (found.sa_handler != handler || sigismember(&found.sa_mask, SIGSYS) != (blocks == SIGSYS)) fail("its action");
}

static void signals_are_as_set(void) {
    struct sigaction found;
    sigset_t blocked;
    stack_t stack;
    sigaction(SIGSYS, NULL, &found);
    if (found.sa_handler != on_sys) fail("the action of SIGSYS");
    sigaction(SIGUSR1, NULL, &found);
    if (found.sa_handler != on_usr || !sigismember(&found.sa_mask, SIGSYS)) fail("the action of SIGUSR1");
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    if (!sigismember(&blocked, SIGSYS) || !sigismember(&blocked, SIGUSR2) || sigismember(&blocked, SIGUSR1)) fail("what is blocked");
    sigaltstack(NULL, &stack);
    if (stack.ss_sp != alternate) fail("the alternate stack");
}

int main(int count, char **arguments) {
    const char *first = count > 1 ? arguments[1] : "";
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    char line[64];
    pthread_t other;
    if (!strcmp(first, "exec")) execl("/proc/self/exe", arguments[0], "again", NULL);

    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    if (sigaltstack(&stack, NULL)) fail("sigaltstack");
    action(SIGSYS, on_sys, 0, 0);
    action(SIGUSR1, on_usr, SA_ONSTACK, SIGSYS);
    action(SIGALRM, on_alarm, SA_RESTART, 0);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGSYS);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signals_are_as_set();

    if (!strcmp(first, "threads") && (pthread_create(&other, NULL, thread, NULL) || pthread_join(other, NULL))) fail("a thread");
    if (!strcmp(first, "alarm")) alarm(1);
    if (!strcmp(first, "int80") && pid_by_32_bits() != getpid()) fail("a call of 32 bits");
    if (!strcmp(first, "signal")) raise(SIGUSR1);
    if (!strcmp(first, "seccomp") && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))) fail("seccomp");

    // Wrong pointers, past the compiler, which knows that there are none. An unmapped page, and one that can only be read.
    void *const nowhere = (void *)8, *const constant = (void *)&first_page;
    for (int signal = SIGUSR2; ; signal = SIGSYS) {
        if (syscall(SYS_rt_sigaction, signal, nowhere, NULL, 8) != -1 || errno != EFAULT) fail("sigaction from nowhere");
        if (syscall(SYS_rt_sigaction, signal, NULL, nowhere, 8) != -1 || errno != EFAULT) fail("sigaction to nowhere");
        if (syscall(SYS_rt_sigaction, signal, NULL, constant, 8) != -1 || errno != EFAULT) fail("sigaction to a constant");
        if (signal == SIGSYS) break;
    }
    if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, nowhere, NULL, 8) != -1 || errno != EFAULT) fail("sigprocmask from nowhere");
    if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, nowhere, 8) != -1 || errno != EFAULT) fail("sigprocmask to nowhere");
    if (syscall(SYS_sigaltstack, nowhere, NULL) != -1 || errno != EFAULT) fail("sigaltstack from nowhere");
    if (syscall(SYS_openat, AT_FDCWD, nowhere, O_RDONLY) != -1 || errno != EFAULT) fail("open of nowhere");

    // Copies of the connection, one where it was, and one closed on exec.
    int copy = dup(0), high = fcntl(0, F_DUPFD_CLOEXEC, 40);
    if (copy < 3 || high < 40) fail("dup");
    if (close(0) || fcntl(0, F_GETFD) != -1 || errno != EBADF) fail("close");
    if (open("/dev/null", O_RDONLY) != 0 || read(0, line, 1) != 0) fail("another in its place");
    if (dup2(copy, 0) != 0) fail("dup2");
    if (fcntl(high, F_GETFD) != FD_CLOEXEC || fcntl(copy, F_GETFD) != 0) fail("close on exec");
    int kind, one = sizeof kind;
    if (getsockopt(0, SOL_SOCKET, SO_TYPE, &kind, (socklen_t *)&one) || kind != SOCK_STREAM) fail("its type");
    for (int number = 3; number < 1024; number++)
        if (number != copy && number != high && fcntl(number, F_GETFD) != -1) fail("a descriptor that is not its own");

    // Who finds that it does not wait may leave it so.
    int status = fcntl(0, F_GETFL);
    if (status == -1) fail("its flags");

    // Calls that change nothing, and wait for nobody. Descriptors of others are not open for it.
    struct pollfd asked[16] = {{.fd = 0}, {.fd = copy}, {.fd = high}, {.fd = -1}, {.fd = 39}};
    for (int i = 5; i < 16; i++) asked[i].fd = 84 + i;
    struct timespec no_time = {0, 0};
    for (int i = 0; i < 2; i++) {
        if ((i ? ppoll(asked, 16, &no_time, NULL) : poll(asked, 16, 0)) != 12) fail("poll");
        for (int j = 0; j < 16; j++) if (asked[j].revents != (j < 4 ? 0 : POLLNVAL)) fail("what poll finds");
    }
    if (syscall(SYS_poll, constant, 1, 0) != -1 || errno != EFAULT) fail("poll of a constant");
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event none_yet;
    if (epoll_wait(set, &none_yet, 1, 0) || epoll_pwait(set, &none_yet, 1, 0, NULL) || close(set)) fail("epoll_wait");
    if (open("/nonesuch", O_WRONLY) != -1 || errno != ENOENT) fail("open of what is not there");
    if (open("/dev/null/nonesuch", O_RDWR | O_TRUNC) != -1 || errno != ENOTDIR) fail("open below a file");
    if (mkdir("/", 0) != -1 || errno != EEXIST || mkdirat(AT_FDCWD, "/dev/null", 0) != -1 || errno != EEXIST) fail("mkdir");
    if (syscall(SYS_mkdir, nowhere, 0) != -1 || errno != EFAULT) fail("mkdir of nowhere");
    int death;
    if (prctl(PR_SET_PDEATHSIG, SIGUSR2) || prctl(PR_GET_PDEATHSIG, &death) || death != SIGUSR2) fail("its parent's death");
    if (strcmp(first, "alarm") && alarm(0)) fail("alarm");
    struct sockaddr_storage own, again;
    memset(&own, 0, sizeof own);
    memset(&again, 0, sizeof again);
    socklen_t own_length = sizeof own, short_length = 5, no_length = -1;
    if (getsockname(high, (struct sockaddr *)&own, &own_length)) fail("its own address");
    if (getsockname(0, (struct sockaddr *)&again, &short_length) || short_length != own_length) fail("a part of it");
    if (memcmp(&own, &again, 5) || ((char *)&again)[5]) fail("what is a part of it");
    if (getsockname(0, (struct sockaddr *)&again, &no_length) != -1 || errno != EINVAL) fail("no length");
    if (syscall(SYS_getsockname, 0, nowhere, &own_length) != -1 || errno != EFAULT) fail("an address to nowhere");

    struct rlimit none = {0, 0};
    int is_full = !strcmp(first, "limit") || !strcmp(first, "files");
    if (!strcmp(first, "limit") && (setrlimit(RLIMIT_NOFILE, &none) || setrlimit(RLIMIT_NOFILE, &none))) fail("its limit");
    while (is_full && open("/dev/null", O_RDONLY) != -1) continue;
    int poll = is_full ? -1 : epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (poll != -1 && epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event)) fail("epoll_ctl");
    // Here it has it.
    if (poll != -1 && epoll_wait(poll, &event, 1, 10000) != 1) fail("epoll_wait");
    struct sockaddr_storage client;
    socklen_t length = sizeof client;
    for (int number = 0; number <= high; number++)
        if ((number < 2 || number == copy || number == high) && getpeername(number, (struct sockaddr *)&client, &length)) fail("a copy");
    if (fcntl(high, F_GETFD) != FD_CLOEXEC || fcntl(0, F_GETFD) != 0) fail("close on exec, after");
    if (fcntl(0, F_GETFL) != status) fail("its flags, after");
    socklen_t again_length = sizeof again;
    if (getsockname(0, (struct sockaddr *)&again, &again_length) || again_length != own_length) fail("its own address, after");
    if (memcmp(&own, &again, sizeof own)) fail("what its own address is, after");
    if (prctl(PR_GET_PDEATHSIG, &death) || death != SIGUSR2) fail("its parent's death, after");
    signals_are_as_set();
    raise(SIGSYS);
    raise(SIGUSR1);
    if (!usr_calls || !on_alternate || sys_calls) fail("its handlers");
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    if (sys_calls != 1) fail("SIGSYS, when it is not blocked any more");
    if (!strcmp(first, "alarm")) while (!alarms) pause();
    int got = read(copy, line, sizeof line);
    if (got < 1) fail("read");
    dprintf(1, "right: %.*s", got, line);
    return 0;
}
