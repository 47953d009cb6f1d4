/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sdbus_service ADDRESS NAME PATH INTERFACE: the least that a D-Bus service in C can do for a ring, with sd-bus.
 *
 * Notify(qq) and NotifyMany(a(qq)) write 1 to an eventfd (once per entry) and reply with nothing.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

static int doorbell;

static int ring(void)
{
    static const uint64_t one = 1;
    return write(doorbell, &one, sizeof one) == sizeof one || errno == EAGAIN ? 0 : -errno;
}

static int notify(sd_bus_message *call, void *userdata, sd_bus_error *error)
{
    uint16_t peer, vector;
    int r = sd_bus_message_read(call, "qq", &peer, &vector);
    (void)userdata, (void)error;
    if (r < 0 || (r = ring()) < 0)
        return r;
    return sd_bus_reply_method_return(call, "");
}

static int notify_many(sd_bus_message *call, void *userdata, sd_bus_error *error)
{
    uint16_t peer, vector;
    int r = sd_bus_message_enter_container(call, 'a', "(qq)");
    (void)userdata, (void)error;
    if (r < 0)
        return r;
    while ((r = sd_bus_message_read(call, "(qq)", &peer, &vector)) > 0)
        if ((r = ring()) < 0)
            return r;
    return r < 0 ? r : sd_bus_reply_method_return(call, "");
}

static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD("Notify", "qq", "", notify, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD("NotifyMany", "a(qq)", "", notify_many, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END,
};

static void must(int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-r));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    sd_bus *bus = NULL;
    if (argc != 5) {
        fprintf(stderr, "usage: sdbus_service ADDRESS NAME PATH INTERFACE\n");
        return 2;
    }
    if ((doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
        fail("eventfd");
    must(sd_bus_new(&bus), "sd_bus_new");
    must(sd_bus_set_address(bus, argv[1]), argv[1]);
    must(sd_bus_set_bus_client(bus, 1), "sd_bus_set_bus_client");
    must(sd_bus_start(bus), "sd_bus_start");
    must(sd_bus_add_object_vtable(bus, NULL, argv[3], argv[4], vtable, NULL), argv[3]);
    must(sd_bus_request_name(bus, argv[2], 0), argv[2]);
    for (;;) {
        int r = sd_bus_process(bus, NULL);
        must(r, "sd_bus_process");
        if (!r)
            must(sd_bus_wait(bus, UINT64_MAX), "sd_bus_wait");
    }
}
