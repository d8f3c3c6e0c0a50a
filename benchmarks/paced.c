/* paced.c: holds streams open and measures, in a window of time, how late their tokens come and how evenly.
 *
 * One thread, epoll. STREAMS connections are opened one every RAMP_US, each for one stream without end. When each has
 * brought a token, or five seconds after the last was opened, {"measuring":N} is printed, SETTLE_MS later. From then on,
 * for MEASURE_MS, each token's latency (now minus its stamp) is counted, and how much it differs from the latency of
 * the stream's token before it: the jitter. What opening costs is over by then. Then everybody hangs up.
 *
 * build: cc -O2 -o paced paced.c
 * run:   paced PORT REQUEST-FILE STREAMS RAMP_US SETTLE_MS MEASURE_MS
 *
 * prints one more line of JSON; `standing` had brought a token, `lost` were refused or ended. Exits 2 when misused.
 */
#define _GNU_SOURCE
#include "answer.h"
#include "dial.h"
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    STAND_SECONDS = 5,  /* after the ramp: for who has brought no token by then nobody waits any longer */
    EVENTS_MAX = 512,
    FINE = 64,          /* microseconds below this have a bucket each; */
    HALF = FINE / 2,    /* above, every doubling is cut in so many: 3 % at most */
    BUCKETS = FINE + 27 * HALF,
};

struct stream {
    struct answer answer; /* first: on_token is given its address */
    int fd;
    size_t sent;
    bool stands;
    uint64_t latency_ns; /* of the last token; 0: none yet */
};

static struct histogram { uint64_t n, max_us, buckets[BUCKETS]; } latency, jitter;
static struct { long standing, lost, tokens, bytes; int bad_status; } seen;
static bool measuring;

static size_t bucket_of(uint64_t us)
{
    if (us > UINT32_MAX) us = UINT32_MAX;
    int shift = 0;
    for (; us >= FINE; us >>= 1) shift++;
    return shift ? FINE + (size_t)(shift - 1) * HALF + (size_t)(us - HALF) : (size_t)us;
}

/* The middle of what it holds. */
static uint64_t value_of(size_t bucket)
{
    if (bucket < FINE) return bucket;
    size_t shift = (bucket - FINE) / HALF + 1, within = (bucket - FINE) % HALF + HALF;
    return ((uint64_t)within << shift) + (1u << shift) / 2;
}

static void count(struct histogram *h, uint64_t ns)
{
    uint64_t us = ns / 1000;
    h->n++, h->buckets[bucket_of(us)]++;
    if (us > h->max_us) h->max_us = us;
}

static void on_token(struct answer *a, uint64_t now)
{
    struct stream *s = (struct stream *)a;
    uint64_t late = now - a->stamp_ns + 1, before = s->latency_ns;
    s->latency_ns = late;
    if (!s->stands) s->stands = true, seen.standing++;
    if (!measuring) return;
    seen.tokens++;
    count(&latency, late);
    if (before) count(&jitter, late > before ? late - before : before - late);
}

static void lose(struct stream *s)
{
    if (!seen.lost++) seen.bad_status = s->answer.status;
    if (s->stands) seen.standing--;
    close(s->fd);
    s->fd = -1;
}

static void on_writable(int epoll, struct stream *s, const char *request, size_t request_n)
{
    ssize_t n = send(s->fd, request + s->sent, request_n - s->sent, MSG_NOSIGNAL);
    if (n > 0) s->sent += (size_t)n;
    if (s->sent == request_n) epoll_ctl(epoll, EPOLL_CTL_MOD, s->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = s});
}

static void on_readable(struct stream *s)
{
    static char bytes[1 << 16];
    ssize_t n = recv(s->fd, bytes, sizeof bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        seen.bytes += n;
        take(&s->answer, bytes, (size_t)n);
    }
    bool refused = s->answer.status && s->answer.status != 200;
    if (n <= 0 || refused || s->answer.part >= COMPLETE) lose(s);
}

static void print_percentiles(const char *name, const struct histogram *h)
{
    static const double shares[] = {0, .01, .05, .1, .25, .5, .75, .9, .95, .99, .995, .999, .9995, .9999};
    printf("\"%s\":[", name);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        uint64_t before = 0, rank = (uint64_t)((double)(h->n ? h->n - 1 : 0) * shares[i]);
        size_t b = 0;
        for (; b < BUCKETS - 1 && (before += h->buckets[b]) <= rank; b++) {}
        printf("[%g,%llu],", shares[i], (unsigned long long)(h->n ? value_of(b) : 0));
    }
    printf("[1,%llu]]", (unsigned long long)h->max_us);
}

static void report(double seconds)
{
    printf("{\"standing\":%ld,\"lost\":%ld,\"bad_status\":%d,\"tokens\":%ld,\"mbytes\":%.2f,\"seconds\":%.4f,", seen.standing,
           seen.lost, seen.bad_status, seen.tokens, (double)seen.bytes / 1e6, seconds);
    print_percentiles("latency_us", &latency);
    printf(",");
    print_percentiles("jitter_us", &jitter);
    printf("}\n");
    fflush(stdout);
}

static int ms_until(uint64_t due)
{
    uint64_t t = now_ns();
    return due <= t ? 0 : (int)((due - t) / 1000000);
}

static void open_stream(int epoll, int port, struct stream *s)
{
    begin_answer(&s->answer);
    s->fd = dial(port);
    epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &(struct epoll_event){.events = EPOLLIN | EPOLLOUT, .data.ptr = s});
}

static void handle(int epoll, int timeout_ms, const char *request, size_t request_n)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(epoll, events, EVENTS_MAX, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct stream *s = events[i].data.ptr;
        if (s->sent < request_n) on_writable(epoll, s, request, request_n);
        if (events[i].events & ~(uint32_t)EPOLLOUT) on_readable(s);
    }
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: paced PORT REQUEST-FILE STREAMS RAMP_US SETTLE_MS MEASURE_MS\n");
        return 2;
    }
    int port = atoi(argv[1]), epoll = epoll_create1(EPOLL_CLOEXEC);
    size_t request_n;
    char *request = contents_of(argv[2], &request_n);
    long streams = atol(argv[3]), dialed = 0;
    uint64_t ramp_ns = strtoull(argv[4], NULL, 10) * 1000, settle_ns = strtoull(argv[5], NULL, 10) * 1000000;
    uint64_t measure_ns = strtoull(argv[6], NULL, 10) * 1000000, began = 0, next_dial = now_ns();
    uint64_t due = next_dial + (uint64_t)streams * ramp_ns + STAND_SECONDS * 1000000000ull;
    enum { STANDING, SETTLING, MEASURING } phase = STANDING;
    raise_descriptor_limit();
    for (struct stream *all = zeroed((size_t)streams, sizeof *all);;) {
        for (; dialed < streams && now_ns() >= next_dial; next_dial += ramp_ns) open_stream(epoll, port, &all[dialed++]);
        handle(epoll, ms_until(dialed < streams && next_dial < due ? next_dial : due), request, request_n);
        bool known = dialed == streams && seen.standing + seen.lost == streams;
        if (phase == STANDING && (known || now_ns() >= due)) {
            phase = SETTLING, due = now_ns() + settle_ns;
        } else if (phase == SETTLING && now_ns() >= due) {
            printf("{\"measuring\":%ld}\n", seen.standing);
            fflush(stdout);
            phase = MEASURING, measuring = true, began = now_ns(), due = began + measure_ns;
        } else if (phase == MEASURING && now_ns() >= due) {
            report((double)(now_ns() - began) / 1e9);
            return 0;
        }
    }
}
