/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Access to memory that a driver changes at the same time, in C11's memory order. Fields of a ring are little-endian,
 * as is every host that we build for; the addresses that these take are aligned, which who calls has checked.
 */
#ifndef DOORBELLD_BARRIERS_H
#define DOORBELLD_BARRIERS_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rings are little-endian, and so must be the host"
#endif

static inline uint16_t load16(const uint16_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline uint16_t load16_acquire(const uint16_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void store16(uint16_t *at, uint16_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
static inline void store16_release(uint16_t *at, uint16_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline uint64_t load64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline uint64_t load64_acquire(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void store64_release(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline void store64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
static inline int load_flag(const int *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void store_flag(int *at, int value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

/* What was stored before is visible to others before anything after is loaded. */
static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Copy out of memory that may change meanwhile: what is used afterwards is the copy, never read a second time. */
static inline void take_copy(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    __asm__ volatile("" ::: "memory");
}

/* Add to a counter that one thread writes and others read. */
static inline void count_up(uint64_t *counter, uint64_t by) { store64(counter, load64(counter) + by); }

/* Add to a counter that several threads write. */
static inline void count_up_shared(uint64_t *counter, uint64_t by) { __atomic_fetch_add(counter, by, __ATOMIC_RELAXED); }

/* Tell the processor that this is a loop that waits. */
static inline void relax_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
