/* upstream.c: an OpenAI-compatible upstream that costs almost nothing, so that what is measured is the relay.
 *
 * One thread, epoll, HTTP/1.1 keep-alive, loopback only. The model's name shapes the answer, because it is the one
 * part of a request that every relay passes on:
 *
 *     sim-TOKENS-INTERVAL_US-BYTES[-WAIT_MS[-TAG]][!FAULT]
 *
 *     TOKENS       content chunks in the stream
 *     INTERVAL_US  between two of them, before the first and before the end; 0: as fast as the socket takes them
 *     BYTES        of filler behind each stamp
 *     WAIT_MS      the status line itself is held back so long
 *     TAG          a number by which GET /aborts/TAG is asked for when that stream was aborted
 *     FAULT        after half of the tokens: cut (the connection is closed), reset, garbage (an event that is no JSON),
 *                  error (an error object), stall (nothing more comes until /end); or status: 500 instead of a stream
 *
 * Another name means sim-200-20000-8. A token's content begins with a stamp, "@" and 19 digits: CLOCK_MONOTONIC in
 * nanoseconds when the token was written. Whoever receives it on the same machine knows how long it was under way.
 *
 *     POST /v1/chat/completions   the stream; one JSON answer unless "stream" is true; 400 for what is no request
 *     GET  /v1/models             one model
 *     GET  /stats                 {"active","started","completed","aborted","faulted","last_abort_ns"}
 *     GET  /end                   ends all streams that have begun, now and in good order; the answer as for /stats
 *     GET  /aborts/TAG            {"ns"}: when that stream was aborted; 0: it was not
 *
 * A stream is aborted when its connection goes before the last byte has left; last_abort_ns says when that was noticed.
 *
 * build: cc -O2 -o upstream upstream.c
 * run:   upstream PORT     0 takes a free port; "listening on 127.0.0.1:PORT" is printed once connections are taken
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    REQUEST_MAX = 1 << 20, /* head and body together; more closes the connection */
    OUT_MAX = 16 << 10,
    TOKEN_MAX = 768,       /* one token's chunk, filler included */
    BLOCK_MAX = 1536,      /* the most that one step appends: role and first token, or finish, usage and end */
    FLOOD_TURNS = 8,       /* buffers a flooding stream may fill before everybody else has a turn */
    EVENTS_MAX = 512,
    TAGS_MAX = 1 << 16,
    STALL_SECONDS = 3600,  /* at most, unless /end ends it */
    FULL_MS = 10,          /* until a stalled stream that is to end, but whose reader is slow, is tried again */
};

enum phase { READING, HELD, PACED, FLOODING, STALLED, ENDED, CUT, RESET };
enum fault { NONE, FAULT_CUT, FAULT_RESET, FAULT_GARBAGE, FAULT_ERROR, FAULT_STALL, FAULT_STATUS, FAULTS };

static const char *const fault_names[FAULTS] = {"", "!cut", "!reset", "!garbage", "!error", "!stall", "!status"};

struct conn {
    int fd;
    uint32_t watched;
    enum phase phase;
    size_t slot; /* in the heap; 0: no timer */
    uint64_t due_ns;
    char *in;
    size_t in_n, in_cap;
    char out[OUT_MAX];
    size_t out_n, out_sent;
    long tokens, interval_us, sent, tag, number;
    enum fault fault;
    bool wants_usage;
    char token[TOKEN_MAX]; /* the whole chunk, framing included: only the stamp changes from token to token */
    size_t token_n, stamp_at;
};

static int epoll;
static struct { long active, started, completed, aborted, faulted; uint64_t last_abort_ns; } stats;
static uint64_t aborts[TAGS_MAX];
static long ended_up_to; /* the number of the last stream that was told to end */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *grown(void *old, size_t bytes)
{
    void *p = realloc(old, bytes);
    if (!p) abort();
    return p;
}

/* ---- Timers: a binary heap by due time. Slot 0 stays empty, so that a conn's slot 0 can mean "none". ---- */

static struct conn **heap;
static size_t heap_n, heap_cap = 1024;

static void heap_put(size_t slot, struct conn *c)
{
    heap[slot] = c;
    c->slot = slot;
}

static void heap_settle(size_t slot, struct conn *c)
{
    for (; slot > 1 && heap[slot / 2]->due_ns > c->due_ns; slot /= 2) heap_put(slot, heap[slot / 2]);
    for (size_t child; (child = 2 * slot) <= heap_n; slot = child) {
        if (child < heap_n && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        heap_put(slot, heap[child]);
    }
    heap_put(slot, c);
}

static void timer_set(struct conn *c, uint64_t due_ns)
{
    c->due_ns = due_ns;
    if (!c->slot) {
        if (!heap || heap_n + 1 == heap_cap) heap = grown(heap, (heap_cap *= 2) * sizeof *heap);
        heap_put(++heap_n, c);
    }
    heap_settle(c->slot, c);
}

static void timer_clear(struct conn *c)
{
    size_t hole = c->slot;
    if (!hole) return;
    c->slot = 0;
    struct conn *last = heap[heap_n--];
    if (last != c) heap_settle(hole, last);
}

/* ---- What goes out ---- */

__attribute__((format(printf, 2, 3))) static void put(struct conn *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    c->out_n += (size_t)vsnprintf(c->out + c->out_n, OUT_MAX - c->out_n, format, args);
    va_end(args);
}

static void put_json(struct conn *c, const char *status, const char *json)
{
    put(c, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(json), json);
}

#define EVENT(choices_and_usage) \
    "data: {\"id\":\"chatcmpl-sim0123456789abcdefghijklm\",\"object\":\"chat.completion.chunk\"," \
    "\"created\":1760000000,\"model\":\"sim\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_sim0000000\"," \
    choices_and_usage "}\n\n"
#define CHOICE(delta, finish) \
    "\"choices\":[{\"index\":0,\"delta\":" delta ",\"logprobs\":null,\"finish_reason\":" finish "}],\"usage\":null"

static const char ROLE[] = EVENT(CHOICE("{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}", "null"));
static const char TOKEN[] = EVENT(CHOICE("{\"content\":\"@0000000000000000000%.*s\"}", "null"));
static const char FINISH[] = EVENT(CHOICE("{}", "\"stop\""));
static const char USAGE[] =
    EVENT("\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":%ld,\"total_tokens\":%ld}");
static const char FILLER[] =
    " the quick brown fox jumps over the lazy dog while five boxing wizards pack my box with a dozen liquor jugs and"
    " the sphinx of black quartz judges every vow that how vexingly quick daft zebras jump across a waltzing nymph";

/* A chunk per event, as the servers of models write them. RFC 9112 §7.1 allows leading zeros in a chunk's size. */
static void put_event(struct conn *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *chunk = c->out + c->out_n, size[7];
    int n = vsnprintf(chunk + 6, OUT_MAX - c->out_n - 6, format, args);
    va_end(args);
    snprintf(size, sizeof size, "%04x\r\n", (unsigned)n);
    memcpy(chunk, size, 6);
    memcpy(chunk + 6 + n, "\r\n", 2);
    c->out_n += (size_t)n + 8;
}

static void make_token(struct conn *c, long filler)
{
    put_event(c, TOKEN, (int)filler, FILLER);
    memcpy(c->token, c->out, c->token_n = c->out_n);
    c->stamp_at = (size_t)((char *)memchr(c->token, '@', c->token_n) + 1 - c->token);
    c->out_n = 0;
}

static void put_token(struct conn *c)
{
    char *token = memcpy(c->out + c->out_n, c->token, c->token_n);
    uint64_t t = now_ns();
    for (int digit = 18; digit >= 0; digit--, t /= 10) token[c->stamp_at + (size_t)digit] = (char)('0' + t % 10);
    c->out_n += c->token_n;
}

static void put_end(struct conn *c)
{
    put_event(c, FINISH);
    if (c->wants_usage) put_event(c, USAGE, c->tokens, c->tokens + 9);
    put_event(c, "data: [DONE]\n\n");
    put(c, "0\r\n\r\n");
    c->phase = ENDED;
}

static void put_fault(struct conn *c)
{
    if (c->fault == FAULT_GARBAGE) put_event(c, "data: {\"choices\":[{\"index\":0,\"del\n\n");
    if (c->fault == FAULT_ERROR) put_event(c, "data: {\"error\":{\"message\":\"overheated\",\"type\":\"server_error\"}}\n\n");
    c->phase = c->fault == FAULT_CUT ? CUT : c->fault == FAULT_RESET ? RESET : STALLED;
    if (c->phase == STALLED) timer_set(c, now_ns() + STALL_SECONDS * 1000000000ull);
}

/* One step of a stream; nothing when the buffer is full: a slow reader loses no token, it gets it later. */
static void put_next(struct conn *c)
{
    if (c->out_n + BLOCK_MAX > OUT_MAX) return;
    if (c->sent == 0) put_event(c, ROLE);
    if (c->number <= ended_up_to) put_end(c);
    else if (c->fault && c->sent == c->tokens / 2) put_fault(c);
    else if (c->sent++ < c->tokens) put_token(c);
    else put_end(c);
}

static void put_stream_head(struct conn *c)
{
    put(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
           "x-request-id: req_sim%ld\r\nTransfer-Encoding: chunked\r\n\r\n", stats.started);
    c->phase = c->interval_us ? PACED : FLOODING;
    if (c->phase == PACED) timer_set(c, now_ns() + (uint64_t)c->interval_us * 1000);
}

/* ---- What comes in ---- */

/* The value of a member of the request, by its quoted name. A string inside JSON cannot hold a bare quote. */
static const char *member(const char *body, const char *quoted_name)
{
    const char *at = strstr(body, quoted_name);
    if (!at) return NULL;
    at += strlen(quoted_name);
    return at + strspn(at, " \t\r\n:");
}

/* What a name asks for behind its numbers. */
static enum fault fault_of(const char *model)
{
    size_t n = strcspn(model + 1, "\"") + 1;
    for (enum fault f = NONE + 1; f < FAULTS; f++)
        if (memmem(model, n, fault_names[f], strlen(fault_names[f]))) return f;
    return NONE;
}

static long at_most(long value, long limit) { return value < 0 ? 0 : value > limit ? limit : value; }

static void complete(struct conn *c, const char *body)
{
    const char *model = member(body, "\"model\""), *stream = member(body, "\"stream\"");
    if (body[strspn(body, " \t\r\n")] != '{' || !model) {
        put_json(c, "400 Bad Request", "{\"error\":{\"message\":\"not a chat completion request\","
                                       "\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}");
        return;
    }
    if (!stream || *stream != 't') {
        put_json(c, "200 OK", "{\"id\":\"chatcmpl-sim\",\"object\":\"chat.completion\",\"created\":1760000000,"
                              "\"model\":\"sim\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                              "\"content\":\"ok\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":"
                              "{\"prompt_tokens\":9,\"completion_tokens\":1,\"total_tokens\":10}}");
        return;
    }
    long filler = 8, wait_ms = 0;
    c->tokens = 200, c->interval_us = 20000, c->sent = c->tag = 0;
    sscanf(model, "\"sim-%ld-%ld-%ld-%ld-%ld", &c->tokens, &c->interval_us, &filler, &wait_ms, &c->tag);
    if ((c->fault = fault_of(model)) == FAULT_STATUS) {
        stats.faulted++;
        put_json(c, "500 Internal Server Error", "{\"error\":{\"message\":\"down\",\"type\":\"server_error\"}}");
        return;
    }
    c->tokens = at_most(c->tokens, 1000000000), c->interval_us = at_most(c->interval_us, 3600000000L);
    c->wants_usage = strstr(body, "include_usage") != NULL;
    make_token(c, at_most(filler, sizeof FILLER - 1));
    stats.active++, c->number = ++stats.started;
    c->phase = HELD;
    if (wait_ms > 0) timer_set(c, now_ns() + (uint64_t)at_most(wait_ms, 3600000) * 1000000);
    else put_stream_head(c);
}

/* All that waits is due now: the same for each, so that the heap's order stands. */
static void end_all(void)
{
    uint64_t t = now_ns();
    ended_up_to = stats.started;
    for (size_t slot = 1; slot <= heap_n; slot++) heap[slot]->due_ns = t;
}

static void answer(struct conn *c, const char *head, const char *body)
{
    char json[256];
    if (!strncmp(head, "GET /end ", 9)) end_all();
    if (!strncmp(head, "GET /stats ", 11) || !strncmp(head, "GET /end ", 9)) {
        snprintf(json, sizeof json,
                 "{\"active\":%ld,\"started\":%ld,\"completed\":%ld,\"aborted\":%ld,\"faulted\":%ld,\"last_abort_ns\":%llu}",
                 stats.active, stats.started, stats.completed, stats.aborted, stats.faulted,
                 (unsigned long long)stats.last_abort_ns);
        put_json(c, "200 OK", json);
    } else if (!strncmp(head, "GET /aborts/", 12)) {
        snprintf(json, sizeof json, "{\"ns\":%llu}", (unsigned long long)aborts[strtoul(head + 12, NULL, 10) % TAGS_MAX]);
        put_json(c, "200 OK", json);
    } else if (!strncmp(head, "GET /v1/models ", 15)) {
        put_json(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"sim-200-20000-8\",\"object\":\"model\","
                              "\"created\":1760000000,\"owned_by\":\"sim\"}]}");
    } else if (!strncmp(head, "POST /v1/chat/completions ", 26)) {
        complete(c, body);
    } else {
        put_json(c, "404 Not Found", "{\"error\":{\"message\":\"no such path\",\"type\":\"not_found_error\"}}");
    }
}

/* Walks a chunked body (RFC 9112 §7.1); its payload is joined at `to`, which may be the same memory, unless NULL.
 * Returns the bytes it takes on the wire, 0 while its end has not come. */
static size_t walk_chunks(const char *body, size_t n, char *to)
{
    for (size_t at = 0;;) {
        char *data = memmem(body + at, n - at, "\r\n", 2);
        if (!data) return 0;
        size_t size = strtoul(body + at, NULL, 16);
        at = (size_t)(data + 2 - body);
        if (size > REQUEST_MAX || at + size + 2 > n) return 0;
        if (to) memmove(to, body + at, size), to += size;
        at += size + 2;
        if (!size) {
            if (to) *to = 0;
            return at;
        }
    }
}

/* Answers the first request of the buffer and takes it out; false while it is not whole. */
static bool take_request(struct conn *c)
{
    c->in[c->in_n] = 0;
    char *body = memmem(c->in, c->in_n, "\r\n\r\n", 4);
    if (!body) return false;
    body += 4;
    size_t there = c->in_n - (size_t)(body - c->in), n = 0;
    char *length = strcasestr(c->in, "\r\nContent-Length:"), *chunked = strcasestr(c->in, "\r\nTransfer-Encoding: chunked");
    if (chunked && chunked < body) {
        if (!(n = walk_chunks(body, there, NULL))) return false;
        walk_chunks(body, there, body);
        answer(c, c->in, body);
    } else {
        if (length && length < body) n = strtoul(length + 17, NULL, 10);
        if (there < n) return false;
        char next = body[n];
        body[n] = 0;
        answer(c, c->in, body);
        body[n] = next;
    }
    c->in_n = there - n;
    memmove(c->in, body + n, c->in_n);
    return true;
}

/* ---- A connection's life ---- */

static void watch(struct conn *c, uint32_t events)
{
    if (c->watched == events) return;
    c->watched = events;
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = events | EPOLLRDHUP, .data.ptr = c});
}

static void drop(struct conn *c)
{
    if (c->phase == CUT || c->phase == RESET) {
        stats.active--, stats.faulted++;
        if (c->phase == RESET) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    } else if (c->phase != READING) {
        stats.active--, stats.aborted++, stats.last_abort_ns = now_ns();
        if (c->tag > 0) aborts[c->tag % TAGS_MAX] = stats.last_abort_ns;
    }
    timer_clear(c);
    close(c->fd);
    free(c->in);
    free(c);
}

enum sent { ALL, BLOCKED, GONE };

static enum sent flush(struct conn *c)
{
    while (c->out_sent < c->out_n) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_n - c->out_sent, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? BLOCKED : GONE;
        c->out_sent += (size_t)n;
    }
    c->out_n = c->out_sent = 0;
    return ALL;
}

/* Does all that can be done now; false when the connection is gone. */
static bool advance(struct conn *c)
{
    for (int turn = 0; turn < FLOOD_TURNS; turn++) {
        enum sent sent = flush(c);
        if (sent == GONE) return false;
        if (sent == BLOCKED) break;
        if (c->phase == CUT || c->phase == RESET) return false;
        if (c->phase == ENDED) stats.active--, stats.completed++, c->phase = READING;
        if (c->phase == HELD || c->phase == PACED || c->phase == STALLED || (c->phase == READING && !take_request(c))) {
            watch(c, EPOLLIN);
            return true;
        }
        while (c->phase == FLOODING && c->out_n + BLOCK_MAX <= OUT_MAX) put_next(c);
    }
    watch(c, EPOLLIN | EPOLLOUT);
    return true;
}

static bool receive(struct conn *c)
{
    for (;;) {
        if (c->in_n + 1 >= c->in_cap) { /* one byte stays free for the terminator of take_request */
            if (c->in_cap >= REQUEST_MAX) return false;
            c->in = grown(c->in, c->in_cap *= 2);
        }
        ssize_t n = recv(c->fd, c->in + c->in_n, c->in_cap - 1 - c->in_n, 0);
        if (n <= 0) return n < 0 && errno == EAGAIN;
        c->in_n += (size_t)n;
    }
}

static void run_timer(struct conn *c)
{
    if (c->phase == HELD) {
        timer_clear(c);
        put_stream_head(c);
    } else {
        put_next(c);
        if (c->phase == PACED) timer_set(c, c->due_ns + (uint64_t)c->interval_us * 1000);
        else if (c->phase != STALLED) timer_clear(c);
        else if (c->due_ns <= now_ns()) timer_set(c, now_ns() + FULL_MS * 1000000ull);
    }
    if (!advance(c)) drop(c);
}

static void accept_all(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        c->watched = EPOLLIN;
        c->in = grown(NULL, c->in_cap = 4096);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c});
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (void *)&address, n) || listen(fd, 8192) || getsockname(fd, (void *)&address, &n)) {
        perror("upstream: cannot listen");
        exit(1);
    }
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static int wait_ms(void)
{
    if (!heap_n) return -1;
    uint64_t t = now_ns(), due = heap[1]->due_ns;
    return due <= t ? 0 : (int)((due - t + 999999) / 1000000);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(atoi(argv[1]));
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN});
    for (struct epoll_event events[EVENTS_MAX];;) {
        int n = epoll_wait(epoll, events, EVENTS_MAX, wait_ms());
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) accept_all(listener);
            else if (events[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) drop(c);
            else if ((events[i].events & EPOLLIN && !receive(c)) || !advance(c)) drop(c);
        }
        for (uint64_t t = now_ns(); heap_n && heap[1]->due_ns <= t;) run_timer(heap[1]);
    }
}
