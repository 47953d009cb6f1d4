// SPDX-FileCopyrightText: 2026 The doorbelld authors
// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ivshmem agent: the program that a test guest runs, steered by lines on standard input.
 *
 * Theory of operation: every PCI device 1af4:1110 is bound to vfio-pci, its registers (BAR0) and its shared memory
 * (BAR2) are mapped, and an eventfd is set on each of its MSI-X vectors.  Then one epoll loop serves the interrupts
 * and the command lines.  README.md describes the line protocol.  Devices are numbered from 0 in the order of their
 * PCI addresses; commands go to device 0 until the command "device" selects another one.  There may be none: the
 * command "run", which runs any other, is good for all devices that Linux has drivers for.
 *
 * All output is whole lines on standard output.  A failure before READY is told as a line FAIL and ends the program.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PCI_DEVICES "/sys/bus/pci/devices"
#define IVSHMEM_ID "0x1af4 0x1110"
#define IVSHMEM_MAX_ID 65535
#define IVSHMEM_MAX_VECTOR 65535

enum { MAX_DEVICES = 16, MAX_LINE = 16384, MAX_READ = 4096, ECHO_SLOT = 64, POLL_INTERVAL_US = 10000 };

/* 32-bit registers in BAR0, as indices */
enum { INTR_MASK, INTR_STATUS, IV_POSITION, DOORBELL };

struct vector {
    int event;
    uint64_t count;
};

struct device {
    int fd;
    volatile uint32_t *registers;
    char *memory;
    size_t size;
    unsigned int vectors;
    struct vector *vector;
    long echo; /* the peer that interrupts are echoed to, or -1 */
};

static struct device devices[MAX_DEVICES];
static unsigned int device_count;
static struct device *current = devices;

/* epoll data: standard input, or a device and a vector */
static const uint64_t INPUT = UINT64_MAX;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    int error = errno;
    va_list arguments;

    va_start(arguments, format);
    printf("FAIL ");
    vprintf(format, arguments);
    printf(": %s\n", strerror(error));
    va_end(arguments);
    exit(EXIT_FAILURE);
}

/* ---- sysfs ---- */

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);

    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail("%s", path);
    close(fd);
}

static void read_attribute(const char *address, const char *name, char *text, size_t size)
{
    char path[PATH_MAX];
    FILE *file;

    snprintf(path, sizeof path, PCI_DEVICES "/%s/%s", address, name);
    file = fopen(path, "r");
    if (!file || !fgets(text, size, file))
        fail("%s", path);
    fclose(file);
    text[strcspn(text, "\n")] = '\0';
}

static int is_ivshmem(const struct dirent *entry)
{
    char vendor[16], product[16], id[33];

    if (entry->d_name[0] == '.')
        return 0;
    read_attribute(entry->d_name, "vendor", vendor, sizeof vendor);
    read_attribute(entry->d_name, "device", product, sizeof product);
    snprintf(id, sizeof id, "%s %s", vendor, product);
    return strcmp(id, IVSHMEM_ID) == 0;
}

/* ---- VFIO ---- */

static void bind_to_vfio(const char *address)
{
    char path[PATH_MAX];

    snprintf(path, sizeof path, PCI_DEVICES "/%s/driver_override", address);
    write_file(path, "vfio-pci");
    write_file("/sys/bus/pci/drivers_probe", address);
}

static int open_group(const char *address)
{
    char path[PATH_MAX], target[PATH_MAX];
    ssize_t length;
    int fd;

    snprintf(path, sizeof path, PCI_DEVICES "/%s/iommu_group", address);
    length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        fail("%s (is there an IOMMU?)", path);
    target[length] = '\0';
    snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(target, '/') + 1);
    fd = open(path, O_RDWR);
    if (fd < 0)
        fail("%s", path);
    return fd;
}

static int open_device(int container, const char *address)
{
    int group = open_group(address);
    int fd;

    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container))
        fail("%s: VFIO_GROUP_SET_CONTAINER", address);
    if (device_count == 0 && ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
        fail("VFIO_SET_IOMMU");
    fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (fd < 0)
        fail("%s: VFIO_GROUP_GET_DEVICE_FD", address);
    return fd;
}

static struct vfio_region_info region_info(int fd, unsigned int index)
{
    struct vfio_region_info info = { .argsz = sizeof info, .index = index };

    if (ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info))
        fail("VFIO_DEVICE_GET_REGION_INFO %u", index);
    return info;
}

static void *map_region(int fd, unsigned int index, size_t *size)
{
    struct vfio_region_info info = region_info(fd, index);
    void *memory = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, info.offset);

    if (memory == MAP_FAILED)
        fail("mapping region %u", index);
    *size = info.size;
    return memory;
}

/* vfio-pci clears the bus master bit, without which no MSI-X message leaves the device. */
static void enable_bus_master(int fd)
{
    off_t offset = region_info(fd, VFIO_PCI_CONFIG_REGION_INDEX).offset + PCI_COMMAND;
    uint16_t command;

    if (pread(fd, &command, sizeof command, offset) != sizeof command)
        fail("reading PCI_COMMAND");
    command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    if (pwrite(fd, &command, sizeof command, offset) != sizeof command)
        fail("writing PCI_COMMAND");
}

static void enable_vectors(struct device *device)
{
    struct vfio_irq_info info = { .argsz = sizeof info, .index = VFIO_PCI_MSIX_IRQ_INDEX };
    struct vfio_irq_set *set;
    int32_t *events;

    if (ioctl(device->fd, VFIO_DEVICE_GET_IRQ_INFO, &info))
        fail("VFIO_DEVICE_GET_IRQ_INFO");
    device->vectors = info.count;
    if (info.count == 0) /* ivshmem-plain */
        return;
    set = calloc(1, sizeof *set + info.count * sizeof *events);
    device->vector = calloc(info.count, sizeof *device->vector);
    if (!set || !device->vector)
        fail("%u vectors", info.count);
    events = (int32_t *)set->data;
    for (unsigned int v = 0; v < info.count; v++) {
        events[v] = device->vector[v].event = eventfd(0, EFD_NONBLOCK);
        if (events[v] < 0)
            fail("eventfd");
    }
    set->argsz = sizeof *set + info.count * sizeof *events;
    set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set->index = VFIO_PCI_MSIX_IRQ_INDEX;
    set->count = info.count;
    if (ioctl(device->fd, VFIO_DEVICE_SET_IRQS, set))
        fail("VFIO_DEVICE_SET_IRQS");
    free(set);
}

static void add_device(int container, const char *address)
{
    struct device *device = &devices[device_count];
    size_t registers_size;

    bind_to_vfio(address);
    device->fd = open_device(container, address);
    device->registers = map_region(device->fd, VFIO_PCI_BAR0_REGION_INDEX, &registers_size);
    device->memory = map_region(device->fd, VFIO_PCI_BAR2_REGION_INDEX, &device->size);
    device->echo = -1;
    enable_bus_master(device->fd);
    enable_vectors(device);
    device_count++;
}

static void add_devices(void)
{
    struct dirent **entries;
    int count = scandir(PCI_DEVICES, &entries, is_ivshmem, alphasort);
    int container;

    if (count == 0 || (count < 0 && errno == ENOENT)) /* User-Mode Linux has no PCI */
        return;
    if (count < 0)
        fail("%s", PCI_DEVICES);
    if (count > MAX_DEVICES) {
        errno = E2BIG;
        fail("%d devices", count);
    }
    container = open("/dev/vfio/vfio", O_RDWR);
    if (container < 0)
        fail("/dev/vfio/vfio");
    for (int i = 0; i < count; i++) {
        add_device(container, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

/* Reads as garbage (-1) until the server has told the device its ID. */
static uint32_t wait_for_id(const struct device *device)
{
    uint32_t id;

    while ((id = device->registers[IV_POSITION]) > IVSHMEM_MAX_ID)
        usleep(POLL_INTERVAL_US);
    return id;
}

static void ring(struct device *device, uint32_t peer, uint32_t vector)
{
    atomic_thread_fence(memory_order_seq_cst);
    device->registers[DOORBELL] = peer << 16 | vector;
}

/* ---- interrupts ---- */

static void echo(struct device *device, unsigned int v)
{
    size_t offset = (size_t)v * ECHO_SLOT;

    if (offset + ECHO_SLOT <= device->size)
        snprintf(device->memory + offset, ECHO_SLOT, "irq %u #%" PRIu64, v, device->vector[v].count);
    ring(device, device->echo, v);
}

static void serve_interrupt(unsigned int d, unsigned int v)
{
    struct device *device = &devices[d];
    uint64_t pending;

    if (read(device->vector[v].event, &pending, sizeof pending) != sizeof pending)
        return;
    device->vector[v].count += pending;
    printf("IRQ %u %" PRIu64 " device=%u\n", v, device->vector[v].count, d);
    if (device->echo >= 0)
        echo(device, v);
}

/* ---- commands ---- */

/* Takes one number of at most `limit` off the front of `*text`. */
static bool take_number(char **text, unsigned long limit, unsigned long *number)
{
    char *end;

    *text += strspn(*text, " ");
    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *number = strtoul(*text, &end, 0);
    if (errno || *number > limit || (*end != ' ' && *end != '\0'))
        return false;
    *text = end;
    return true;
}

static bool at_end(const char *text)
{
    return text[strspn(text, " ")] == '\0';
}

static void command_device(char *text)
{
    unsigned long d;

    if (device_count == 0 || !take_number(&text, device_count - 1, &d) || !at_end(text)) {
        printf("ERR usage: device NUMBER (there are %u)\n", device_count);
        return;
    }
    current = &devices[d];
    printf("OK\n");
}

static void command_ring(char *text)
{
    unsigned long peer, vector;

    if (!take_number(&text, IVSHMEM_MAX_ID, &peer) || !take_number(&text, IVSHMEM_MAX_VECTOR, &vector) ||
        !at_end(text)) {
        printf("ERR usage: ring PEER VECTOR\n");
        return;
    }
    ring(current, peer, vector);
    printf("OK\n");
}

static void command_echo(char *text)
{
    unsigned long peer;

    if (strcmp(text, " off") == 0) {
        current->echo = -1;
    } else if (take_number(&text, IVSHMEM_MAX_ID, &peer) && at_end(text)) {
        current->echo = peer;
    } else {
        printf("ERR usage: echo PEER|off\n");
        return;
    }
    printf("OK\n");
}

/* Replaces \xNN by the byte, in place; returns the length. */
static size_t unescape(char *text)
{
    char *out = text;

    for (char *in = text; *in; out++) {
        if (strncmp(in, "\\x", 2) == 0 && isxdigit((unsigned char)in[2]) && isxdigit((unsigned char)in[3])) {
            char digits[] = { in[2], in[3], '\0' };

            *out = strtoul(digits, NULL, 16);
            in += 4;
        } else {
            *out = *in++;
        }
    }
    return out - text;
}

static void command_write(char *text)
{
    unsigned long offset;
    size_t length;

    if (!take_number(&text, current->size, &offset) || *text != ' ') {
        printf("ERR usage: write OFFSET TEXT (size %zu)\n", current->size);
        return;
    }
    text++;
    length = unescape(text);
    if (length > current->size - offset) {
        printf("ERR beyond the end (size %zu)\n", current->size);
        return;
    }
    memcpy(current->memory + offset, text, length);
    printf("OK\n");
}

static void print_escaped(const volatile char *byte, size_t length)
{
    for (; length > 0; byte++, length--) {
        unsigned char value = *byte;

        if (value < ' ' || value > '~' || value == '\\')
            printf("\\x%02x", value);
        else
            putchar(value);
    }
    putchar('\n');
}

static void command_read(char *text)
{
    unsigned long offset, length;

    if (!take_number(&text, current->size, &offset) || !take_number(&text, MAX_READ, &length) || !at_end(text)) {
        printf("ERR usage: read OFFSET LENGTH (size %zu, at most %d)\n", current->size, MAX_READ);
        return;
    }
    if (length > current->size - offset) {
        printf("ERR beyond the end (size %zu)\n", current->size);
        return;
    }
    printf("DATA ");
    print_escaped(current->memory + offset, length);
}

/* Runs a piece of shell, and waits until nobody writes to its output any more. */
static void command_run(char *text)
{
    static char line[MAX_LINE + 16], output[MAX_READ];
    size_t length;
    FILE *shell;
    int status;

    text[unescape(text)] = '\0';
    snprintf(line, sizeof line, "{%s\n} 2>&1", text);
    shell = popen(line, "r");
    if (!shell) {
        printf("ERR %s\n", strerror(errno));
        return;
    }
    length = fread(output, 1, sizeof output, shell);
    while (getc(shell) != EOF)
        ; /* more than fits into an answer is dropped */
    status = pclose(shell);
    if (status)
        printf("ERR status %d ", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    else
        printf("DATA ");
    print_escaped(output, length);
}

static void command_quit(char *text)
{
    (void)text;
    printf("OK\n");
    exit(EXIT_SUCCESS);
}

static const struct {
    const char *name;
    void (*run)(char *text);
    bool needs_device;
} commands[] = {
    { "ring", command_ring, true },   { "echo", command_echo, true },      { "write", command_write, true },
    { "read", command_read, true },   { "device", command_device, false }, { "run", command_run, false },
    { "quit", command_quit, false },
};

static void run_command(char *line)
{
    size_t length = strcspn(line, " ");

    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strlen(commands[i].name) != length || strncmp(line, commands[i].name, length) != 0)
            continue;
        if (commands[i].needs_device && device_count == 0)
            printf("ERR no device\n");
        else
            commands[i].run(line + length);
        return;
    }
    printf("ERR unknown command\n");
}

/* Standard input is a terminal in raw mode: lines come in pieces, and several may come at once. */
static void serve_input(void)
{
    static char buffer[MAX_LINE];
    static size_t used;
    static bool overlong; /* answered already; the rest of the line is dropped */
    ssize_t got = read(STDIN_FILENO, buffer + used, sizeof buffer - used);
    char *line = buffer, *end;

    if (got <= 0)
        exit(EXIT_SUCCESS);
    used += got;
    while ((end = memchr(line, '\n', buffer + used - line))) {
        *end = '\0';
        if (!overlong)
            run_command(line);
        overlong = false;
        line = end + 1;
    }
    used -= line - buffer;
    memmove(buffer, line, used);
    if (used == sizeof buffer) {
        if (!overlong)
            printf("ERR line too long\n");
        overlong = true;
        used = 0;
    }
}

/* ---- main ---- */

static void watch(int epoll, int fd, uint64_t what)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = what };

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static void announce(unsigned int d, int epoll)
{
    struct device *device = &devices[d];

    for (unsigned int v = 0; v < device->vectors; v++)
        watch(epoll, device->vector[v].event, (uint64_t)d << 32 | v);
    printf("DEVICE %u id=%" PRIu32 " vectors=%u size=%zu\n", d, wait_for_id(device), device->vectors, device->size);
}

int main(void)
{
    struct epoll_event event;
    int epoll = epoll_create1(0);

    setvbuf(stdout, NULL, _IOLBF, 4 * MAX_READ + 64);
    if (epoll < 0)
        fail("epoll_create1");
    add_devices();
    watch(epoll, STDIN_FILENO, INPUT);
    for (unsigned int d = 0; d < device_count; d++)
        announce(d, epoll);
    printf("READY devices=%u\n", device_count);
    for (;;) {
        if (epoll_wait(epoll, &event, 1, -1) != 1)
            continue;
        if (event.data.u64 == INPUT)
            serve_input();
        else
            serve_interrupt(event.data.u64 >> 32, event.data.u64 & UINT32_MAX);
    }
}
