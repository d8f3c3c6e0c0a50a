/* dial.h: connections to the server under test. */
#pragma once
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { SOURCES = 8 }; /* 127.0.0.2 … .9: one address alone would run out of ports */

/* A connection that is being made; a refusal shows at the first send. Ends the program where there is no descriptor. */
static int dial(int port)
{
    static unsigned dialed;
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002u + dialed++ % SOURCES)};
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        perror("socket");
        exit(2);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    bind(fd, (void *)&from, sizeof from);
    connect(fd, (void *)&to, sizeof to);
    return fd;
}

static void raise_descriptor_limit(void)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static void *zeroed(size_t count, size_t bytes)
{
    void *p = calloc(count, bytes);
    if (!p) {
        perror("calloc");
        exit(2);
    }
    return p;
}

/* What the file at `path` holds, whole. */
static char *contents_of(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    char *contents = NULL, buffer[4096];
    FILE *into = open_memstream(&contents, bytes);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, file)) > 0;) fwrite(buffer, 1, n, into);
    fclose(file);
    fclose(into);
    return contents;
}
