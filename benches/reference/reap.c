/* reap PROGRAM...: runs it, and reaps what its servers leave when they are killed, at once; pid 1 may take its time. */
#include "common.h"
#include <sys/prctl.h>

static pid_t child;

static void forward(int number) {
    kill(child, number);
}

int main(int argc, char **argv) {
    int status;
    pid_t pid;
    if (argc < 2) return 64;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) die("prctl");
    child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        execvp(argv[1], argv + 1);
        die(argv[1]);
    }
    /* The terminal tells the program, too. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, forward);
    while ((pid = waitpid(-1, &status, 0)) != child || WIFSTOPPED(status))
        if (pid < 0 && errno != EINTR) die("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
