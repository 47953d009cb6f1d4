/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a fuzzer sees of native modules. setup.py has the compiler include this in each of them with
 * DOORBELLD_SANITIZE=1.
 *
 * gcc calls __sanitizer_cov_trace_pc in each basic block, and libFuzzer reads arrays of counters. So each module has an
 * array of its own; where the call comes from tells the place in it. Without a fuzzer the counters are counted in vain.
 */
#ifndef DOORBELLD_COVERAGE_H
#define DOORBELLD_COVERAGE_H

#include <stdint.h>

#define COVERAGE_BITS 14
#define COVERAGE_PLACES (1u << COVERAGE_BITS)
#define COVERAGE_PLAIN no_sanitize_coverage, no_sanitize("address", "undefined")

static uint8_t coverage_counters[COVERAGE_PLACES];
static uintptr_t coverage_names[COVERAGE_PLACES][2]; /* a made-up address and no flags for each counter */

extern void __sanitizer_cov_8bit_counters_init(uint8_t *, uint8_t *) __attribute__((weak));
extern void __sanitizer_cov_pcs_init(const uintptr_t *, const uintptr_t *) __attribute__((weak));

void __sanitizer_cov_trace_pc(void) __attribute__((visibility("hidden")));
void __sanitizer_cov_trace_cmpf(float, float) __attribute__((visibility("hidden")));
void __sanitizer_cov_trace_cmpd(double, double) __attribute__((visibility("hidden")));

__attribute__((COVERAGE_PLAIN)) void __sanitizer_cov_trace_pc(void)
{
    /* relative to the module, so that a place is the same in each process */
    uint32_t from = (uint32_t)((uintptr_t)__builtin_return_address(0) - (uintptr_t)coverage_counters);
    coverage_counters[(from * 2654435761u) >> (32 - COVERAGE_BITS)]++;
}

/* The runtimes know what to do with comparisons of integers, and not of these. */
__attribute__((COVERAGE_PLAIN)) void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
__attribute__((COVERAGE_PLAIN)) void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }

__attribute__((constructor, COVERAGE_PLAIN)) static void coverage_begin(void)
{
    if (!__sanitizer_cov_8bit_counters_init || !__sanitizer_cov_pcs_init)
        return;
    for (uint32_t i = 0; i < COVERAGE_PLACES; i++)
        coverage_names[i][0] = (uintptr_t)&coverage_counters[i];
    __sanitizer_cov_8bit_counters_init(coverage_counters, coverage_counters + COVERAGE_PLACES);
    __sanitizer_cov_pcs_init(coverage_names[0], coverage_names[COVERAGE_PLACES]);
}

#endif
