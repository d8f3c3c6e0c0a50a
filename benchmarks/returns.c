/* returns.c: a herd of readers that all lose their connection in one moment and come back in the same.
 *
 * STREAMS streams are begun, one every RAMP_US. Once each has brought a token, {"standing":N} is printed. A line on
 * stdin is the moment: all connections are closed, and all are opened anew with `GET PATH/{id}?after=0`, the id being
 * that of X-Stream-Id. Who comes back is served when it has its first token; the time runs from the first new
 * connection on, for everybody: it is how long the herd takes, not how long one of it waits.
 *
 * build: cc -O2 -o returns returns.c
 * run:   returns PORT REQUEST-FILE PATH STREAMS RAMP_US
 *
 * prints one more line of JSON. Exits 2 when misused.
 */
#define _GNU_SOURCE
#include "answer.h"
#include "dial.h"
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { STAND_SECONDS = 60, BACK_SECONDS = 60, EVENTS_MAX = 512, ID_MAX = 64, REQUEST_MAX = 512 };

struct reader {
    struct answer answer; /* first: on_token is given its address */
    int fd;
    size_t sent, request_n;
    const char *request;
    char id[ID_MAX], again[REQUEST_MAX];
    bool served;
    uint64_t served_ns;
};

static int epoll;
static long served, lost, bad_status;

static void on_token(struct answer *a, uint64_t now)
{
    struct reader *r = (struct reader *)a;
    if (r->served) return;
    r->served = true, r->served_ns = now, served++;
}

static void begin(struct reader *r, int port, const char *request, size_t request_n)
{
    begin_answer(&r->answer);
    r->request = request, r->request_n = request_n, r->sent = 0, r->served = false;
    r->fd = dial(port);
    epoll_ctl(epoll, EPOLL_CTL_ADD, r->fd, &(struct epoll_event){.events = EPOLLIN | EPOLLOUT, .data.ptr = r});
}

static void leave(struct reader *r)
{
    if (r->fd >= 0) close(r->fd);
    r->fd = -1;
}

static void lose(struct reader *r)
{
    if (!r->served && !lost++) bad_status = r->answer.status;
    leave(r);
}

static void on_writable(struct reader *r)
{
    ssize_t n = send(r->fd, r->request + r->sent, r->request_n - r->sent, MSG_NOSIGNAL);
    if (n > 0) r->sent += (size_t)n;
    if (r->sent == r->request_n) epoll_ctl(epoll, EPOLL_CTL_MOD, r->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = r});
}

static void on_readable(struct reader *r)
{
    static char bytes[1 << 16];
    ssize_t n = recv(r->fd, bytes, sizeof bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) take(&r->answer, bytes, (size_t)n);
    if (n <= 0 || r->answer.part >= COMPLETE) lose(r);
}

static void handle(uint64_t due)
{
    struct epoll_event events[EVENTS_MAX];
    uint64_t t = now_ns();
    int n = epoll_wait(epoll, events, EVENTS_MAX, due <= t ? 0 : (int)((due - t) / 1000000));
    for (int i = 0; i < n; i++) {
        struct reader *r = events[i].data.ptr;
        if (r->sent < r->request_n) on_writable(r);
        if (events[i].events & ~(uint32_t)EPOLLOUT && r->fd >= 0) on_readable(r);
    }
}

static void make_return(struct reader *r, const char *path)
{
    const char *id = strcasestr(r->answer.head, "\r\nX-Stream-Id:");
    if (id) sscanf(id + 14, " %63[^\r\n]", r->id);
    snprintf(r->again, sizeof r->again,
             "GET %s/%s?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n", path, r->id);
}

static int by_time(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void report(const struct reader *all, long streams, uint64_t began)
{
    uint64_t *times = zeroed((size_t)streams + 1, sizeof *times), n = 0;
    for (long i = 0; i < streams; i++)
        if (all[i].served) times[n++] = all[i].served_ns - began;
    qsort(times, n, sizeof *times, by_time);
    uint64_t last = n ? n - 1 : 0;
    printf("{\"served\":%ld,\"lost\":%ld,\"bad_status\":%ld,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}\n", served,
           streams - served, bad_status, (double)times[last / 2] / 1e6, (double)times[last * 99 / 100] / 1e6,
           (double)times[last] / 1e6);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: returns PORT REQUEST-FILE PATH STREAMS RAMP_US\n");
        return 2;
    }
    int port = atoi(argv[1]);
    size_t request_n;
    char *request = contents_of(argv[2], &request_n);
    long streams = atol(argv[4]), dialed = 0;
    uint64_t ramp_ns = strtoull(argv[5], NULL, 10) * 1000, next_dial = now_ns();
    uint64_t due = next_dial + (uint64_t)streams * ramp_ns + STAND_SECONDS * 1000000000ull;
    raise_descriptor_limit();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct reader *all = zeroed((size_t)streams, sizeof *all);
    while (served + lost < streams && now_ns() < due) {
        for (; dialed < streams && now_ns() >= next_dial; next_dial += ramp_ns) begin(&all[dialed++], port, request, request_n);
        handle(dialed < streams && next_dial < due ? next_dial : due);
    }
    printf("{\"standing\":%ld}\n", served);
    fflush(stdout);
    /* The tokens that come while nobody has told us to go on are left in the kernel: some seconds of them fit. */
    if (getchar() == EOF) return 0;
    for (long i = 0; i < streams; i++) make_return(&all[i], argv[3]), leave(&all[i]);
    served = lost = bad_status = 0;
    uint64_t began = now_ns();
    due = began + BACK_SECONDS * 1000000000ull;
    for (long i = 0; i < streams; i++) begin(&all[i], port, all[i].again, strlen(all[i].again));
    while (served + lost < streams && now_ns() < due) handle(due);
    report(all, streams, began);
    return 0;
}
