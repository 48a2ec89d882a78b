/* echo: the program that is exec'ed for every connection. */
#include "common.h"

int main(void) {
    echo(0, 1);
    return 0;
}
