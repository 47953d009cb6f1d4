/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The SIGBUS guard: what happens when guest memory is not there.
 *
 * A front-end can truncate the file behind guest memory at any time. The next access then raises SIGBUS in the thread
 * that made it. The handler looks for the address among the mappings registered here; if it is in one, it puts
 * anonymous zero pages in place, from the page that failed to the end of that mapping (so that a truncated region costs
 * one fault, not one for each page, and one more kernel mapping, not thousands), notes the damage, and returns: the
 * access succeeds, with no meaning. Whoever uses that memory looks at the note and gives up on the front-end.
 * Any other fault goes to the handler that was there before, or to the default one.
 *
 * Mappings are registered and forgotten by one thread at a time (the caller holds Python's lock); the handler runs in
 * any thread, without a lock. A slot that is being changed has an odd sequence number; the handler skips it, for it
 * can't be the one it looks for: a mapping is registered before it is used and forgotten when nobody uses it any more.
 */
#ifndef DOORBELLD_SIGBUS_H
#define DOORBELLD_SIGBUS_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "damage.h"

struct guarded {
    unsigned sequence;
    uintptr_t start; /* 0: the slot is free */
    size_t length;
    size_t page;
    uint64_t guest_addr; /* of start */
    struct damage *damage;
};

#define GUARDED_CHUNK 256

struct guarded_chunk {
    struct guarded slots[GUARDED_CHUNK];
    struct guarded_chunk *next;
};

static struct guarded_chunk guarded_first; /* chunks are never freed: the handler may be looking */
static struct sigaction sigbus_previous;

static void guarded_set(struct guarded *slot, uintptr_t start, size_t length, size_t page, uint64_t guest_addr,
                        struct damage *damage)
{
    unsigned sequence = slot->sequence;
    __atomic_store_n(&slot->sequence, sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&slot->start, start, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->length, length, __ATOMIC_RELAXED);
    slot->page = page;
    slot->guest_addr = guest_addr;
    slot->damage = damage;
    __atomic_store_n(&slot->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* Register a mapping; NULL if there is no memory for that. */
static struct guarded *guarded_add(void *start, size_t length, size_t page, uint64_t guest_addr, struct damage *damage)
{
    struct guarded_chunk *chunk = &guarded_first;
    for (;;) {
        for (int i = 0; i < GUARDED_CHUNK; i++) {
            if (!chunk->slots[i].start) {
                guarded_set(&chunk->slots[i], (uintptr_t)start, length, page, guest_addr, damage);
                return &chunk->slots[i];
            }
        }
        if (!chunk->next) {
            struct guarded_chunk *fresh = (struct guarded_chunk *)calloc(1, sizeof *fresh);
            if (!fresh)
                return NULL;
            __atomic_store_n(&chunk->next, fresh, __ATOMIC_RELEASE);
        }
        chunk = chunk->next;
    }
}

static void guarded_remove(struct guarded *slot) { guarded_set(slot, 0, 0, 0, 0, NULL); }

static int zeroes_at(uintptr_t start, size_t length)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap((void *)start, length, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* Put zero pages where *address* is in a registered mapping; whether it was.
 *
 * In a process that has as many mappings as it may, one can't be cut in two, but replaced as a whole; if it has one more
 * than that, which the kernel lets happen, only after it was removed. Then a thread that comes by in between is lost,
 * but without that all would be.
 */
static int sigbus_heal(uintptr_t address)
{
    struct guarded_chunk *chunk;
    for (chunk = &guarded_first; chunk; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < GUARDED_CHUNK; i++) {
            struct guarded *slot = &chunk->slots[i];
            unsigned sequence = __atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE);
            uintptr_t start = __atomic_load_n(&slot->start, __ATOMIC_RELAXED);
            size_t length = __atomic_load_n(&slot->length, __ATOMIC_RELAXED);
            if ((sequence & 1) || !start || address - start >= length)
                continue;
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (__atomic_load_n(&slot->sequence, __ATOMIC_RELAXED) != sequence)
                continue;
            /* it is ours: the slot stays as it is for as long as this access lasts */
            size_t offset = (address - start) & ~(slot->page - 1);
            if (!zeroes_at(start + offset, length - offset) && !zeroes_at(start, length) &&
                (munmap((void *)start, length) || !zeroes_at(start, length)))
                return 0;
            int none = 0;
            int *happened = &slot->damage->happened;
            if (__atomic_compare_exchange_n(happened, &none, -1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
                slot->damage->guest_addr = slot->guest_addr + offset;
                __atomic_store_n(happened, 1, __ATOMIC_RELEASE);
            }
            return 1;
        }
    }
    return 0;
}

static void sigbus_handler(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    int healed = info->si_code > 0 && sigbus_heal((uintptr_t)info->si_addr);
    errno = saved;
    if (healed)
        return;
    if (sigbus_previous.sa_flags & SA_SIGINFO) {
        sigbus_previous.sa_sigaction(number, info, context);
    } else if (sigbus_previous.sa_handler == SIG_IGN && info->si_code <= 0) {
        return; /* somebody sent it, and it was ignored before */
    } else if (sigbus_previous.sa_handler == SIG_DFL || sigbus_previous.sa_handler == SIG_IGN) {
        signal(number, SIG_DFL); /* a fault happens again at once; what was sent is sent again */
        if (info->si_code <= 0)
            raise(number);
    } else {
        sigbus_previous.sa_handler(number);
    }
}

/* Install the handler, once in a process; 0, or an errno value. */
static int sigbus_install(void)
{
    static int installed;
    struct sigaction action;
    if (installed)
        return 0;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = sigbus_handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    if (sigaction(SIGBUS, &action, &sigbus_previous))
        return errno;
    installed = 1;
    return 0;
}

#endif
