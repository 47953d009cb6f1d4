/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Reads from the hardware random number generator that the kernel has chosen, and prints which that is and what came.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char name[64] = "";
    unsigned char bytes[64];
    int chosen = open("/sys/class/misc/hw_random/rng_current", O_RDONLY);
    int source = open("/dev/hwrng", O_RDONLY);

    setbuf(stdout, NULL);
    if (chosen < 0 || read(chosen, name, sizeof name - 1) < 0 || source < 0) {
        puts("FAIL");
        return 1;
    }
    name[strcspn(name, "\n")] = 0;
    printf("CURRENT %s\n", name);
    for (int round = 0; round < 8; round++) {
        ssize_t got = read(source, bytes, sizeof bytes);
        printf("BYTES ");
        for (ssize_t i = 0; i < got; i++)
            printf("%02x", bytes[i]);
        puts("");
    }
    puts("END");
    return 0;
}
