/* load.c: opens many chat streams at once and measures what arrives, and when.
 *
 * One thread, epoll, HTTP/1.1. CONCURRENCY slots each ask for one stream after another, over the same connection
 * while the server keeps it. Every stamp of upstream.c ("@" and 19 digits of CLOCK_MONOTONIC) is one token, wherever
 * the server cut it; its latency is now minus the stamp. A stream ends with its HTTP body (chunked, of a known length
 * or to the end of the connection) and is ok when its status was 200 and it brought all its TOKENS.
 *
 * build: cc -O2 -o load load.c
 * run:   load PORT PATH BODY-FILE STREAMS CONCURRENCY TOKENS [HEADER ...]     a HEADER is "Name: value"
 *
 *     LOAD_ABORT_AFTER=K       hang up on each stream after its K-th token
 *     LOAD_ABORT_AFTER_MS=K    hang up on each stream K ms after it was asked for
 *     LOAD_ABORT_SPREAD_MS=K   and up to K ms later, at random
 *     LOAD_HOLD=1              once every stream has brought a token, say {"standing":N} and keep them until stdin ends
 *     LOAD_RAMP_US=K           at the start, wait K microseconds between opening two connections
 *     LOAD_FOR_MS=K            ask for no more streams after K ms, however few of STREAMS there were
 *     LOAD_REFUSED=told        a 429 or 503 is no failure: its slot asks again after the Retry-After, and 1 s without one
 *     LOAD_REFUSED=K           the same, after K ms whatever it was told
 *
 * A refusal's answer is timed from its request's last byte to its status line. A stream that was let into the queue and
 * ran out of time there ended with an error event "overloaded" and no token: it was given up, and is no failure either.
 * overtaken_us is the most by which the first token of a stream came before that of one that was asked for sooner.
 *
 * prints one line of JSON; exits 0 when every stream was ok or hung up on as asked, 1 when not, 2 when misused.
 */
#define _GNU_SOURCE
#include "answer.h"
#include "dial.h"
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    TAIL_MAX = 512,          /* of a stream's last bytes, where an error event would be */
    SAMPLES_MAX = 8000000,   /* latencies kept; memory is touched only as far as it is used */
    UNTOLD_MS = 1000,        /* until a slot that was refused asks again when it was not told when */
    STALL_SECONDS = 30,
    EVENTS_MAX = 512,
};

struct slot {
    struct answer answer; /* first: on_token is given its address */
    int fd;
    bool busy, reused; /* not busy with an fd: a kept connection that waits for retry_ns */
    size_t sent;
    uint64_t began_ns, asked_ns, answered_ns, hang_up_ns, retry_ns; /* asked: the last byte; answered: the first */
    long tokens;
    char tail[TAIL_MAX];
    size_t tail_n;
};

static int epoll, port;
static char *request;
static size_t request_n;
static long streams, concurrency, expected, abort_after, abort_after_ms, abort_spread_ms;
static bool abort_in_time, may_refuse;
static long refused_ms; /* -1: as told */
static uint64_t over_ns = UINT64_MAX;
static struct slot *slots;

static struct {
    long opened, ended, ok, failed, aborted, bad_status, timeouts, tokens, bytes, standing;
    long refused_429, refused_503, given_up, turned_away; /* turned away: asked until the end, and never let in */
    uint64_t last_abort_ns, next_hang_up_ns, next_retry_ns;
    char first_failure[TAIL_MAX + 1];
} seen;

static struct samples { uint32_t *us; long n; } latency, first_token, refusal;
static struct begun { uint64_t asked_ns, first_ns; } *begun;
static long begun_n;

static void sample(struct samples *s, uint64_t ns)
{
    if (s->n < SAMPLES_MAX) s->us[s->n++] = ns / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 1000);
}

/* ---- Reading an answer ---- */

static void on_token(struct answer *a, uint64_t t)
{
    struct slot *s = (struct slot *)a;
    sample(&latency, t - a->stamp_ns);
    seen.tokens++;
    if (s->tokens++) return;
    sample(&first_token, t - s->began_ns);
    seen.standing++;
    if (begun_n < SAMPLES_MAX) begun[begun_n++] = (struct begun){s->asked_ns, t};
}

static void keep_tail(struct slot *s, const char *p, size_t n)
{
    if (n > TAIL_MAX) p += n - TAIL_MAX, n = TAIL_MAX;
    size_t old = s->tail_n + n > TAIL_MAX ? TAIL_MAX - n : s->tail_n;
    memmove(s->tail, s->tail + s->tail_n - old, old);
    memcpy(s->tail + old, p, n);
    s->tail_n = old + n;
}

static bool keeps_alive(const struct slot *s)
{
    return s->answer.part == COMPLETE && !strcasestr(s->answer.head, "\r\nConnection: close");
}

/* ---- A slot's life ---- */

static bool more(void) { return seen.opened < streams && now_ns() < over_ns; }

static void watch(struct slot *s, int operation, uint32_t events)
{
    epoll_ctl(epoll, operation, s->fd, &(struct epoll_event){.events = events | EPOLLRDHUP, .data.ptr = s});
}

static void ask(struct slot *s)
{
    uint64_t spread_ns = abort_spread_ms ? (uint64_t)(drand48() * (double)abort_spread_ms * 1e6) : 0;
    s->busy = true;
    s->began_ns = now_ns();
    s->hang_up_ns = s->began_ns + (uint64_t)abort_after_ms * 1000000 + spread_ns;
    if (abort_in_time && s->hang_up_ns < seen.next_hang_up_ns) seen.next_hang_up_ns = s->hang_up_ns;
    s->sent = s->tail_n = 0, s->tokens = 0;
    begin_answer(&s->answer);
}

static void ask_anew(struct slot *s)
{
    s->fd = dial(port);
    s->reused = false;
    ask(s);
    watch(s, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void open_stream(struct slot *s)
{
    seen.opened++;
    ask_anew(s);
}

static void hang_up(struct slot *s)
{
    s->busy = false;
    seen.last_abort_ns = now_ns(); /* before the close: upstream, on another core, may notice before it returns */
    close(s->fd);
    seen.aborted++, seen.ended++;
    if (more()) open_stream(s);
}

static void note_failure(struct slot *s)
{
    seen.failed++;
    if (!seen.bad_status) seen.bad_status = s->answer.status ? s->answer.status : -1;
    if (memmem(s->tail, s->tail_n, "upstream_timeout", 16)) seen.timeouts++;
    if (seen.failed == 1) memcpy(seen.first_failure, s->tail, s->tail_n);
}

static void ask_again(struct slot *s)
{
    s->reused = true;
    ask(s);
    watch(s, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void wake_for_retry(const struct slot *s)
{
    uint64_t t = s->retry_ns < over_ns ? s->retry_ns : over_ns;
    if (t < seen.next_retry_ns) seen.next_retry_ns = t;
}

/* A stream is opened once, however often its slot has to ask for it. */
static void put_off(struct slot *s)
{
    const char *told = strcasestr(s->answer.head, "\r\nRetry-After:");
    uint64_t ms = refused_ms >= 0 ? (uint64_t)refused_ms : told ? strtoul(told + 14, NULL, 10) * 1000 : UNTOLD_MS;
    s->retry_ns = now_ns() + ms * 1000000;
    wake_for_retry(s);
    if (keeps_alive(s)) return;
    close(s->fd);
    s->fd = -1;
}

static bool was_put_off(struct slot *s)
{
    if (!may_refuse) return false;
    int status = s->answer.status;
    if (status == 200 && !s->tokens && memmem(s->tail, s->tail_n, "\"overloaded\"", 12)) seen.given_up++;
    else if (status == 429) seen.refused_429++;
    else if (status == 503) seen.refused_503++;
    else return false;
    if (status != 200) sample(&refusal, s->answered_ns - s->asked_ns);
    put_off(s);
    return true;
}

static void end_stream(struct slot *s)
{
    s->busy = false;
    if (was_put_off(s)) return;
    seen.ended++;
    bool whole = s->answer.part == COMPLETE || s->answer.part == UNTIL_CLOSE;
    if (s->answer.status == 200 && s->tokens == expected && whole) seen.ok++;
    else note_failure(s);
    if (keeps_alive(s) && more()) {
        seen.opened++;
        ask_again(s);
        return;
    }
    close(s->fd);
    if (more()) open_stream(s);
}

static void on_close(struct slot *s)
{
    if (!s->busy) { /* it waits to ask again, and the server keeps the connection no longer */
        close(s->fd);
        s->fd = -1;
        return;
    }
    if (s->reused && !s->answer.head_n) { /* an idle connection may close under a request (RFC 9112 §9.3.1) */
        close(s->fd);
        ask_anew(s);
        return;
    }
    end_stream(s);
}

static void on_writable(struct slot *s)
{
    ssize_t n = send(s->fd, request + s->sent, request_n - s->sent, MSG_NOSIGNAL);
    if (n > 0) s->sent += (size_t)n;
    if (s->sent < request_n) return;
    s->asked_ns = now_ns();
    watch(s, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_readable(struct slot *s)
{
    static char bytes[1 << 16];
    ssize_t n = recv(s->fd, bytes, sizeof bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        on_close(s);
        return;
    }
    seen.bytes += n;
    if (!s->busy) return;
    if (!s->answer.head_n) s->answered_ns = now_ns();
    keep_tail(s, bytes, (size_t)n);
    take(&s->answer, bytes, (size_t)n);
    if (abort_after && s->tokens >= abort_after) hang_up(s);
    else if (s->answer.part >= COMPLETE) end_stream(s);
}

static void hang_up_due(void)
{
    uint64_t t = now_ns();
    if (t < seen.next_hang_up_ns) return;
    seen.next_hang_up_ns = UINT64_MAX;
    for (long i = 0; i < concurrency; i++) {
        struct slot *s = &slots[i];
        if (s->busy && s->hang_up_ns <= t) hang_up(s);
        if (s->busy && s->hang_up_ns < seen.next_hang_up_ns) seen.next_hang_up_ns = s->hang_up_ns;
    }
}

/* What was put off until now is asked for again; when no more is asked for, all of it is given up. */
static void retry_due(void)
{
    uint64_t t = now_ns();
    if (t < seen.next_retry_ns) return;
    seen.next_retry_ns = UINT64_MAX;
    for (long i = 0; i < concurrency; i++) {
        struct slot *s = &slots[i];
        if (!s->retry_ns) continue;
        if (s->retry_ns > t && t < over_ns) {
            wake_for_retry(s);
            continue;
        }
        s->retry_ns = 0;
        if (t >= over_ns) seen.turned_away++, seen.ended++;
        else if (s->fd < 0) ask_anew(s);
        else ask_again(s);
    }
}

/* ---- The whole ---- */

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_percentiles(const char *name, struct samples *s)
{
    static const struct { const char *name; double share; } points[] = {
        {"p50", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}, {"max", 1}};
    qsort(s->us, (size_t)s->n, sizeof *s->us, compare);
    printf("\"%s\":{", name);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        printf("%s\"%s\":%u", i ? "," : "", points[i].name, s->n ? s->us[(long)((double)(s->n - 1) * points[i].share)] : 0);
    printf("},");
}

static int by_asking(const void *a, const void *b)
{
    uint64_t x = ((const struct begun *)a)->asked_ns, y = ((const struct begun *)b)->asked_ns;
    return (x > y) - (x < y);
}

static uint64_t overtaken_ns(void)
{
    uint64_t soonest = UINT64_MAX, most = 0;
    qsort(begun, (size_t)begun_n, sizeof *begun, by_asking);
    for (long i = begun_n; i-- > 0;) {
        if (begun[i].first_ns < soonest) soonest = begun[i].first_ns;
        else if (begun[i].first_ns - soonest > most) most = begun[i].first_ns - soonest;
    }
    return most;
}

static void print_text(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        putchar(*text >= 0x20 && *text < 0x7f ? *text : ' ');
    }
    putchar('"');
}

static void report(double seconds)
{
    printf("{\"ok\":%ld,\"failed\":%ld,\"aborted\":%ld,\"bad_status\":%ld,\"timeouts\":%ld,\"tokens\":%ld,", seen.ok,
           seen.failed, seen.aborted, seen.bad_status, seen.timeouts, seen.tokens);
    printf("\"seconds\":%.4f,\"tokens_per_s\":%.0f,\"mbytes\":%.2f,", seconds, (double)seen.tokens / seconds,
           (double)seen.bytes / 1e6);
    print_percentiles("latency_us", &latency);
    print_percentiles("ttft_us", &first_token);
    printf("\"refused_429\":%ld,\"refused_503\":%ld,\"given_up\":%ld,\"turned_away\":%ld,\"overtaken_us\":%llu,",
           seen.refused_429, seen.refused_503, seen.given_up, seen.turned_away, (unsigned long long)overtaken_ns() / 1000);
    print_percentiles("refusal_us", &refusal);
    printf("\"last_abort_ns\":%llu,\"first_failure\":", (unsigned long long)seen.last_abort_ns);
    print_text(seen.first_failure);
    printf("}\n");
}

static void make_request(char **argv, int argc)
{
    size_t body_n;
    char *body = contents_of(argv[3], &body_n);
    FILE *to = open_memstream(&request, &request_n);
    fprintf(to, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n",
            argv[2], port, body_n);
    bool accepts = false;
    for (int i = 7; i < argc; i++) {
        fprintf(to, "%s\r\n", argv[i]);
        accepts |= !strncasecmp(argv[i], "Accept:", 7);
    }
    if (!accepts) fprintf(to, "Accept: text/event-stream\r\n");
    fprintf(to, "\r\n");
    fwrite(body, 1, body_n, to);
    fclose(to);
    free(body);
}

static long option(const char *name)
{
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

/* Milliseconds until something of ours is due, rounded down: the last fraction is spent awake, not overslept. */
static int wait_ms(uint64_t next_dial_ns)
{
    uint64_t t = now_ns(), due = t + STALL_SECONDS * 1000000000ull;
    if (next_dial_ns < due) due = next_dial_ns;
    if (seen.next_hang_up_ns < due) due = seen.next_hang_up_ns;
    if (seen.next_retry_ns < due - 1000000) due = seen.next_retry_ns + 1000000; /* overslept: nothing is timed by it */
    return due <= t ? 0 : (int)((due - t) / 1000000);
}

/* Says that all streams stand and lets the end of stdin end the run; false when it has ended already. */
static bool hold(void)
{
    printf("{\"standing\":%ld}\n", seen.standing);
    fflush(stdout);
    return !epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &(struct epoll_event){.events = EPOLLIN | EPOLLRDHUP});
}

static void run(void)
{
    uint64_t ramp_ns = (uint64_t)option("LOAD_RAMP_US") * 1000, next_dial_ns = now_ns(), heard_ns = next_dial_ns;
    enum { NO, SOON, NOW } holding = option("LOAD_HOLD") ? SOON : NO;
    struct epoll_event events[EVENTS_MAX];
    for (long dialed = 0; dialed < concurrency || seen.ended < seen.opened || more();) {
        for (; dialed < concurrency && now_ns() >= next_dial_ns; next_dial_ns += ramp_ns, dialed++)
            if (more()) open_stream(&slots[dialed]); /* a slot whose stream has ended may have had the last */
        if (dialed == concurrency) next_dial_ns = UINT64_MAX;
        int n = epoll_wait(epoll, events, EVENTS_MAX, wait_ms(next_dial_ns));
        if (n > 0) heard_ns = now_ns();
        for (int i = 0; i < n; i++) {
            struct slot *s = events[i].data.ptr;
            if (!s) return; /* stdin, while holding */
            if (s->sent < request_n) on_writable(s);
            if (events[i].events & ~(uint32_t)EPOLLOUT) on_readable(s);
        }
        if (abort_in_time) hang_up_due();
        if (may_refuse) retry_due();
        if (holding == SOON && seen.standing >= concurrency) {
            holding = NOW;
            if (!hold()) return;
        }
        if (holding != NOW && now_ns() - heard_ns > STALL_SECONDS * 1000000000ull) {
            fprintf(stderr, "load: nothing arrived for %d s, %ld streams are open\n", STALL_SECONDS, seen.opened - seen.ended);
            return;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: load PORT PATH BODY-FILE STREAMS CONCURRENCY TOKENS [HEADER ...]\n");
        return 2;
    }
    port = atoi(argv[1]);
    streams = atol(argv[4]), concurrency = atol(argv[5]), expected = atol(argv[6]);
    if (concurrency > streams) concurrency = streams;
    abort_after = option("LOAD_ABORT_AFTER");
    abort_after_ms = option("LOAD_ABORT_AFTER_MS"), abort_spread_ms = option("LOAD_ABORT_SPREAD_MS");
    abort_in_time = abort_after_ms || abort_spread_ms;
    const char *refused = getenv("LOAD_REFUSED");
    may_refuse = refused != NULL, refused_ms = refused && strcmp(refused, "told") ? atol(refused) : -1;
    seen.next_hang_up_ns = seen.next_retry_ns = UINT64_MAX;
    srand48((long)now_ns());
    make_request(argv, argc);
    raise_descriptor_limit();
    latency.us = zeroed(SAMPLES_MAX, sizeof *latency.us);
    first_token.us = zeroed(SAMPLES_MAX, sizeof *first_token.us);
    refusal.us = zeroed(SAMPLES_MAX, sizeof *refusal.us);
    begun = zeroed(SAMPLES_MAX, sizeof *begun);
    slots = zeroed((size_t)concurrency, sizeof *slots);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    uint64_t began = now_ns();
    if (option("LOAD_FOR_MS")) over_ns = began + (uint64_t)option("LOAD_FOR_MS") * 1000000;
    run();
    report((double)(now_ns() - began) / 1e9);
    return seen.ok + seen.aborted + seen.turned_away == (over_ns == UINT64_MAX ? streams : seen.opened) ? 0 : 1;
}
