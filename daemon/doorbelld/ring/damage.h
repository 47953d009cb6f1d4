/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef DOORBELLD_DAMAGE_H
#define DOORBELLD_DAMAGE_H

#include <stdint.h>

/* What the SIGBUS guard notes. */
struct damage {
    int happened;        /* 1; -1 while the rest is being written */
    uint64_t guest_addr; /* of the first page that was not there */
};

#endif
