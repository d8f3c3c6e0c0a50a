/* answer.h: reads the answer to a request for a stream, wherever the network cut it, and finds upstream's stamps in it.
 *
 * HTTP/1.1: a head, then a body that is chunked, of a known length, or as long as the connection. What a client does
 * with a token (upstream.c: "@" and 19 digits of CLOCK_MONOTONIC) is its own: it defines on_token.
 */
#pragma once
#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEAD_MAX = 8192, STAMP_DIGITS = 19 };
enum part { HEAD, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, LENGTH, UNTIL_CLOSE, COMPLETE, BROKEN };

struct answer {
    enum part part;
    int status;
    char head[HEAD_MAX];
    size_t head_n, left, line_n; /* left: of a chunk or of a body with a length; line_n: of a trailer line */
    int digits;                  /* of the stamp being read; -1 outside of one */
    uint64_t stamp_ns;
};

static void on_token(struct answer *a, uint64_t now);

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void begin_answer(struct answer *a)
{
    a->part = HEAD, a->status = 0, a->head_n = 0, a->digits = -1;
}

static void scan_stamps(struct answer *a, const char *p, const char *end, uint64_t now)
{
    while (p < end) {
        if (a->digits < 0) {
            if (!(p = memchr(p, '@', (size_t)(end - p)))) return;
            p++, a->digits = 0, a->stamp_ns = 0;
        }
        for (; p < end && a->digits >= 0 && a->digits < STAMP_DIGITS; p++) {
            if (isdigit((unsigned char)*p)) a->stamp_ns = a->stamp_ns * 10 + (uint64_t)(*p - '0'), a->digits++;
            else { a->digits = -1; break; } /* p stays: it may be the next '@' */
        }
        if (a->digits != STAMP_DIGITS) continue;
        a->digits = -1;
        if (a->stamp_ns <= now) on_token(a, now);
    }
}

static const char *take_head(struct answer *a, const char *p, const char *end)
{
    for (; p < end && a->head_n < HEAD_MAX - 1; p++) {
        a->head[a->head_n++] = *p;
        if (a->head_n < 4 || memcmp(a->head + a->head_n - 4, "\r\n\r\n", 4)) continue;
        a->head[a->head_n] = 0;
        a->status = a->head_n > 12 ? atoi(a->head + 9) : 0;
        const char *length = strcasestr(a->head, "\r\nContent-Length:");
        if (strcasestr(a->head, "\r\nTransfer-Encoding: chunked")) a->part = CHUNK_SIZE, a->left = 0;
        else if (!length) a->part = a->status == 204 ? COMPLETE : UNTIL_CLOSE;
        else a->part = (a->left = strtoul(length + 17, NULL, 10)) ? LENGTH : COMPLETE;
        return p + 1;
    }
    if (a->head_n == HEAD_MAX - 1) a->part = BROKEN;
    return end;
}

static const char *take_body(struct answer *a, const char *p, const char *end, uint64_t now)
{
    size_t there = (size_t)(end - p), n = a->part == UNTIL_CLOSE || there < a->left ? there : a->left;
    scan_stamps(a, p, p + n, now);
    a->left -= a->part == UNTIL_CLOSE ? 0 : n;
    if (a->part == CHUNK_DATA && !a->left) a->part = CHUNK_END;
    if (a->part == LENGTH && !a->left) a->part = COMPLETE;
    return p + n;
}

/* One byte of the framing between chunks (RFC 9112 §7.1). */
static void take_framing(struct answer *a, char c)
{
    if (a->part == CHUNK_SIZE) {
        if (isxdigit((unsigned char)c)) a->left = a->left * 16 + (size_t)(isdigit((unsigned char)c) ? c - '0' : (c | 32) - 'a' + 10);
        else if (c == '\n') a->part = a->left ? CHUNK_DATA : TRAILER, a->line_n = 0;
        else if (c != '\r') a->part = BROKEN; /* an extension: nobody sends one */
    } else if (a->part == CHUNK_END) {
        if (c == '\n') a->part = CHUNK_SIZE;
    } else if (c == '\n') { /* TRAILER: lines, up to an empty one */
        if (!a->line_n) a->part = COMPLETE;
        a->line_n = 0;
    } else if (c != '\r') {
        a->line_n++;
    }
}

static void take(struct answer *a, const char *p, size_t n)
{
    uint64_t now = now_ns();
    for (const char *end = p + n; p < end && a->part < COMPLETE;) {
        if (a->part == HEAD) p = take_head(a, p, end);
        else if (a->part == CHUNK_DATA || a->part == LENGTH || a->part == UNTIL_CLOSE) p = take_body(a, p, end, now);
        else take_framing(a, *p++);
    }
}
