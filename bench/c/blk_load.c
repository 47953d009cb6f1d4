/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * blk_load read|write DEPTH ENTRIES SECONDS SOCKET...: front-ends that give vhost-user-blk back-ends 4 KiB requests.
 *
 * Each does what a guest's driver does, in a thread of its own: one split ring of ENTRIES with indirect descriptors and
 * event indexes, DEPTH requests in flight at random places, and it sleeps in poll(2) for the call eventfd when there
 * is nothing to do. They begin together when all are set up. Each block of a disk must begin with its own number; that
 * is checked, and kept when writing. Prints one line of JSON: requests a second of all together, and what a request
 * takes, in microseconds.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { /* vhost-user requests and bits */
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
    PROTOCOL_CONFIG = 9,
    F_PROTOCOL_FEATURES = 30,
    F_VERSION_1 = 32,
};

enum { ENTRIES_MAX = 32768, BLOCK = 4096, SLOT = 64 }; /* SLOT: bytes of an indirect table, and of header and status */

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t word;
        struct {
            uint32_t index, number;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } address;
        struct {
            uint32_t count, padding;
            uint64_t guest, size, user, offset;
        } memory;
        struct {
            uint32_t offset, size, flags;
            unsigned char bytes[256];
        } config;
    } body;
} __attribute__((packed));

enum { SAMPLES = 1 << 18 }; /* of a front-end, at most: the first ones */

struct front_end {
    pthread_t thread;
    const char *path;
    uint64_t done;
    double began, end;
    size_t taken;
    double samples[SAMPLES];
};

static unsigned depth, entries;
static size_t tables, headers, blocks_at, size; /* guest addresses; the ring is at 0 */
static int writing;
static double seconds;
static pthread_barrier_t ready;

static _Thread_local int sock, kick, call;
static _Thread_local unsigned char *memory;
static _Thread_local struct vring ring;
static _Thread_local uint16_t last_used, published;

/* Send a message, with *fd* unless that is -1; wait for the answer if one is due. */
static void ask(struct message *message, int fd, int answered)
{
    union one_fd control = {.space = {0}};
    struct iovec data = {message, 12 + message->size};
    struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
    message->flags = 1;
    if (fd >= 0) {
        header.msg_control = &control;
        header.msg_controllen = sizeof control;
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    if (sendmsg(sock, &header, 0) != (ssize_t)data.iov_len)
        fail("sendmsg");
    if (!answered)
        return;
    if (recv(sock, message, 12, MSG_WAITALL) != 12 || message->size > sizeof message->body ||
        recv(sock, &message->body, message->size, MSG_WAITALL) != (ssize_t)message->size)
        fail("the back-end's answer");
}

static void tell(uint32_t request, uint64_t word, int fd)
{
    struct message message = {.request = request, .size = 8, .body.word = word};
    ask(&message, fd, 0);
}

static void tell_state(uint32_t request, uint32_t number)
{
    struct message message = {.request = request, .size = 8, .body.state = {0, number}};
    ask(&message, -1, 0);
}

static uint64_t get(uint32_t request)
{
    struct message message = {.request = request};
    ask(&message, -1, 1);
    return message.body.word;
}

/* Connect and set everything up; the disk's size in blocks. */
static uint64_t set_up(const char *path)
{
    struct sockaddr_un address = unix_address(path);
    struct message message;
    uint64_t features, sectors;
    int fd = memfd_create("blk_load", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size))
        fail("memfd");
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    kick = eventfd(0, EFD_CLOEXEC);
    call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* as QEMU does */
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (memory == MAP_FAILED || kick < 0 || call < 0 || sock < 0)
        fail("set up");
    if (connect(sock, (struct sockaddr *)&address, sizeof address))
        fail(path);
    vring_init(&ring, entries, memory, 64);

    features = get(GET_FEATURES);
    features &= 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << F_PROTOCOL_FEATURES |
                1ull << F_VERSION_1 | 1ull << VIRTIO_BLK_F_FLUSH;
    if (!(features >> VIRTIO_RING_F_INDIRECT_DESC & features >> VIRTIO_RING_F_EVENT_IDX & 1)) {
        fprintf(stderr, "the back-end lacks indirect descriptors or event indexes\n");
        exit(1);
    }
    tell(SET_PROTOCOL_FEATURES, get(GET_PROTOCOL_FEATURES) & 1 << PROTOCOL_CONFIG, -1);
    message = (struct message){.request = SET_OWNER};
    ask(&message, -1, 0);
    tell(SET_FEATURES, features, -1);
    message = (struct message){.request = GET_CONFIG, .size = 12 + 60, .body.config = {0, 60, 0, {0}}};
    ask(&message, -1, 1);
    memcpy(&sectors, message.body.config.bytes, sizeof sectors);

    message = (struct message){.request = SET_MEM_TABLE, .size = 40, .body.memory = {1, 0, 0, size, (uintptr_t)memory, 0}};
    ask(&message, fd, 0);
    tell_state(SET_VRING_NUM, entries);
    tell_state(SET_VRING_BASE, 0);
    message = (struct message){
        .request = SET_VRING_ADDR,
        .size = 40,
        .body.address = {0, 0, (uintptr_t)ring.desc, (uintptr_t)ring.used, (uintptr_t)ring.avail, 0},
    };
    ask(&message, -1, 0);
    tell(SET_VRING_KICK, 0, kick);
    tell(SET_VRING_CALL, 0, call);
    tell_state(SET_VRING_ENABLE, 1);
    get(GET_FEATURES); /* answered when all of this is done */
    close(fd);
    return sectors / (BLOCK / 512);
}

static struct virtio_blk_outhdr *header_of(unsigned slot) { return (void *)(memory + headers + slot * SLOT); }
static unsigned char *status_of(unsigned slot) { return memory + headers + slot * SLOT + sizeof(struct virtio_blk_outhdr); }
static uint64_t *data_of(unsigned slot) { return (void *)(memory + blocks_at + slot * BLOCK); }

/* Make all that stays the same from request to request. */
static void prepare(unsigned slot)
{
    struct vring_desc *table = (void *)(memory + tables + slot * SLOT);
    uint16_t inward = writing ? 0 : VRING_DESC_F_WRITE;
    table[0] = (struct vring_desc){(unsigned char *)header_of(slot) - memory, sizeof(struct virtio_blk_outhdr),
                                   VRING_DESC_F_NEXT, 1};
    table[1] = (struct vring_desc){(unsigned char *)data_of(slot) - memory, BLOCK, VRING_DESC_F_NEXT | inward, 2};
    table[2] = (struct vring_desc){status_of(slot) - memory, 1, VRING_DESC_F_WRITE, 0};
    ring.desc[slot] = (struct vring_desc){(unsigned char *)table - memory, 3 * sizeof *table, VRING_DESC_F_INDIRECT, 0};
    header_of(slot)->type = writing ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
}

static void submit(unsigned slot, uint64_t block)
{
    header_of(slot)->sector = block * (BLOCK / 512);
    *status_of(slot) = 0xff;
    *data_of(slot) = header_of(slot)->type == VIRTIO_BLK_T_OUT ? block : ~block;
    ring.avail->ring[published++ & (entries - 1)] = (uint16_t)slot;
}

/* Let the back-end see what was submitted since *old*. */
static void publish(uint16_t old)
{
    const uint16_t *event = (void *)&ring.used->ring[entries]; /* the back-end's: from which one on to kick */
    uint64_t one = 1;
    __atomic_store_n(&ring.avail->idx, published, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (vring_need_event(__atomic_load_n(event, __ATOMIC_RELAXED), published, old) &&
        write(kick, &one, sizeof one) != sizeof one)
        fail("kick");
}

static int is_idle(void) { return __atomic_load_n(&ring.used->idx, __ATOMIC_ACQUIRE) == last_used; }

static void wait_for_call(void)
{
    struct pollfd called = {.fd = call, .events = POLLIN};
    uint64_t count;
    __atomic_store_n(&vring_used_event(&ring), last_used, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (is_idle() && (poll(&called, 1, -1) != 1 || read(call, &count, sizeof count) != sizeof count))
        fail("call");
}

static void *use(void *argument)
{
    struct front_end *own = argument;
    uint64_t blocks = set_up(own->path), seed = 88172645463325252ull + (uintptr_t)own;
    double *begun = calloc(depth, sizeof *begun), until;
    uint16_t old;
    if (!begun)
        fail("memory");
    for (unsigned slot = 0; slot < depth; slot++)
        prepare(slot);
    pthread_barrier_wait(&ready);
    own->began = own->end = now();
    until = own->began + seconds;
    for (unsigned slot = 0; slot < depth; slot++) {
        begun[slot] = own->began;
        submit(slot, slot % blocks);
    }
    publish(0);
    for (uint64_t out = depth; out;) {
        wait_for_call();
        old = published;
        own->end = now();
        while (!is_idle()) {
            unsigned slot = ring.used->ring[last_used++ & (entries - 1)].id;
            if (slot >= depth || *status_of(slot) || *data_of(slot) != header_of(slot)->sector / (BLOCK / 512)) {
                fprintf(stderr, "%s: a request failed, or gave other data than it should\n", own->path);
                exit(1);
            }
            own->done++, out--;
            if (own->taken < SAMPLES)
                own->samples[own->taken++] = own->end - begun[slot];
            if (own->end < until) {
                seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
                begun[slot] = own->end;
                submit(slot, seed % blocks), out++;
            }
        }
        if (published != old)
            publish(old);
    }
    free(begun);
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned count = argc < 6 ? 0 : (unsigned)argc - 5;
    struct front_end *all = calloc(count + !count, sizeof *all);
    double began = 0, end = 0, *samples;
    uint64_t done = 0;
    size_t taken = 0;
    depth = count ? (unsigned)atoi(argv[2]) : 0;
    entries = count ? (unsigned)atoi(argv[3]) : 0;
    if (!depth || depth > entries || entries > ENTRIES_MAX || entries & (entries - 1) || !all) {
        fprintf(stderr, "usage: blk_load read|write DEPTH ENTRIES(a power of two up to %d) SECONDS SOCKET...\n", ENTRIES_MAX);
        return 2;
    }
    tables = (vring_size(entries, 64) + BLOCK - 1) / BLOCK * BLOCK;
    headers = tables + depth * SLOT;
    blocks_at = (headers + depth * SLOT + BLOCK - 1) / BLOCK * BLOCK;
    size = blocks_at + (size_t)depth * BLOCK;
    writing = !strcmp(argv[1], "write");
    seconds = atof(argv[4]);
    if (pthread_barrier_init(&ready, NULL, count))
        fail("barrier");
    for (unsigned i = 0; i < count; i++) {
        all[i].path = argv[5 + i];
        if (pthread_create(&all[i].thread, NULL, use, &all[i]))
            fail("thread");
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(all[i].thread, NULL);
        began = i && began < all[i].began ? began : all[i].began;
        end = end > all[i].end ? end : all[i].end;
        done += all[i].done;
        taken += all[i].taken;
    }
    if (!(samples = calloc(taken, sizeof *samples)))
        fail("samples");
    for (unsigned i = taken = 0; i < count; i++) {
        memcpy(samples + taken, all[i].samples, all[i].taken * sizeof *samples);
        taken += all[i].taken;
    }
    qsort(samples, taken, sizeof *samples, by_value);
    printf("{\"per_second\": %.1f, \"mean\": %.3f, \"median\": %.3f, \"p99\": %.3f}\n", (double)done / (end - began),
           (end - began) / (double)done * depth * count * 1e6, samples[taken / 2] * 1e6,
           samples[taken * 99 / 100] * 1e6);
    return 0;
}
