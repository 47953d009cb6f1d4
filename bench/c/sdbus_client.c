/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sdbus_client ADDRESS DESTINATION PATH INTERFACE MEMBER MODE ...: call a method many times and tell how long it took.
 *
 *   latency N               one call at a time, without arguments (GetManagedObjects, say)
 *   latency N PEER VECTOR   ... with the arguments qq
 *   region N PEER VECTOR REGION   ... with the arguments sqq, the name of a region first
 *   many N K PEER VECTORS   ... with an a(qq) of K entries, going round the peer's VECTORS
 *   pipeline N DEPTH PEER VECTOR   DEPTH calls of qq in flight
 *   get N                   Properties.Get of the property MEMBER
 *   wait                    wait until somebody owns DESTINATION
 *
 * Prints one line of JSON: microseconds (latency, many, get), calls per second (pipeline), or CLOCK_MONOTONIC (wait).
 */
#define _GNU_SOURCE
#include "bench.h"

#include <stdint.h>
#include <systemd/sd-bus.h>

#define PATIENCE_US (30 * 1000000ull)

static sd_bus *bus;
static const char *destination, *path, *interface, *member, *region;
static long left, in_flight;
static uint16_t peer, vector;

static void must(int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-r));
        exit(1);
    }
}

static sd_bus_message *method(const char *its_interface, const char *its_member)
{
    sd_bus_message *call = NULL;
    must(sd_bus_message_new_method_call(bus, &call, destination, path, its_interface, its_member), its_member);
    return call;
}

static sd_bus_message *one_ring(void)
{
    sd_bus_message *call = method(interface, member);
    must(region ? sd_bus_message_append(call, "sqq", region, peer, vector) :
                  sd_bus_message_append(call, "qq", peer, vector),
         "append");
    return call;
}

static sd_bus_message *many_rings(long entries, uint16_t vectors)
{
    sd_bus_message *call = method(interface, member);
    must(sd_bus_message_open_container(call, 'a', "(qq)"), "append");
    for (long i = 0; i < entries; i++)
        must(sd_bus_message_append(call, "(qq)", peer, (uint16_t)(i % vectors)), "append");
    must(sd_bus_message_close_container(call), "append");
    return call;
}

static sd_bus_message *property(void)
{
    sd_bus_message *call = method("org.freedesktop.DBus.Properties", "Get");
    must(sd_bus_message_append(call, "ss", interface, member), "append");
    return call;
}

static void call_and_free(sd_bus_message *call)
{
    sd_bus_error error = SD_BUS_ERROR_NULL;
    sd_bus_message *reply = NULL;
    if (sd_bus_call(bus, call, PATIENCE_US, &error, &reply) < 0) {
        fprintf(stderr, "%s: %s: %s\n", member, error.name, error.message);
        exit(1);
    }
    sd_bus_message_unref(call);
    sd_bus_message_unref(reply);
}

static int replied(sd_bus_message *reply, void *userdata, sd_bus_error *unused)
{
    (void)userdata, (void)unused;
    if (sd_bus_message_is_method_error(reply, NULL)) {
        const sd_bus_error *error = sd_bus_message_get_error(reply);
        fprintf(stderr, "%s: %s: %s\n", member, error->name, error->message);
        exit(1);
    }
    in_flight--;
    return 0;
}

static void pipeline(long depth)
{
    long count = left;
    double start = now();
    while (left || in_flight) {
        while (left && in_flight < depth) {
            sd_bus_message *call = one_ring();
            must(sd_bus_call_async(bus, NULL, call, replied, NULL, PATIENCE_US), "sd_bus_call_async");
            sd_bus_message_unref(call);
            left--;
            in_flight++;
        }
        int r = sd_bus_process(bus, NULL);
        must(r, "sd_bus_process");
        if (!r)
            must(sd_bus_wait(bus, PATIENCE_US), "sd_bus_wait");
    }
    printf("{\"count\": %ld, \"per_second\": %.1f}\n", count, (double)count / (now() - start));
}

static void wait_for_owner(void)
{
    sd_bus_creds *creds = NULL;
    char match[512];
    snprintf(match, sizeof match,
             "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='%s'", destination);
    must(sd_bus_add_match(bus, NULL, match, NULL, NULL), "sd_bus_add_match");
    while (sd_bus_get_name_creds(bus, destination, 0, &creds) < 0) {
        int r;
        while ((r = sd_bus_process(bus, NULL)) == 0)
            must(sd_bus_wait(bus, UINT64_MAX), "sd_bus_wait");
        must(r, "sd_bus_process");
    }
    printf("{\"monotonic\": %.6f}\n", now());
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: sdbus_client ADDRESS DESTINATION PATH INTERFACE MEMBER MODE ...\n");
        return 2;
    }
    destination = argv[2], path = argv[3], interface = argv[4], member = argv[5];
    const char *mode = argv[6];
    long args[4] = {0};
    int given = argc - 7;
    for (int i = 0; i < given && i < 4; i++)
        args[i] = atol(argv[7 + i]);

    must(sd_bus_new(&bus), "sd_bus_new");
    must(sd_bus_set_address(bus, argv[1]), argv[1]);
    must(sd_bus_set_bus_client(bus, 1), "sd_bus_set_bus_client");
    must(sd_bus_start(bus), "sd_bus_start");

    if (!strcmp(mode, "wait")) {
        wait_for_owner();
        return 0;
    }
    left = args[0];
    if (left < 1) {
        fprintf(stderr, "%s: how often?\n", mode);
        return 2;
    }
    if (!strcmp(mode, "pipeline") && given == 4 && args[1] > 0) {
        peer = (uint16_t)args[2], vector = (uint16_t)args[3];
        pipeline(args[1]);
        return 0;
    }
    if (!strcmp(mode, "region") && given == 4)
        region = argv[10];
    int latency = !strcmp(mode, "latency"), many = !strcmp(mode, "many") && given == 4 && args[3] > 0;
    if (!latency && !many && !region && strcmp(mode, "get")) {
        fprintf(stderr, "%s: no such mode, or arguments are missing\n", mode);
        return 2;
    }
    peer = (uint16_t)(many ? args[2] : args[1]), vector = (uint16_t)args[2];
    double *samples = calloc((size_t)left, sizeof *samples);
    for (long i = 0; i < left; i++) {
        double start = now();
        call_and_free(many                    ? many_rings(args[1], (uint16_t)args[3])
                      : region || given == 3  ? one_ring()
                      : !latency              ? property()
                                              : method(interface, member));
        samples[i] = now() - start;
    }
    print_statistics(samples, (size_t)left);
    return 0;
}
