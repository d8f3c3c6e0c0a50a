/** What relay-client.js says and hears: requests, bytes to events, refusals to errors. It remembers nothing. */

const MAX_LINE_CHARACTERS = 1024 * 1024; // the relay's lines stay under 64 KiB: whatever sends this is no relay
const STOP_SECONDS = 1;
const MAX_REFUSAL_CHARACTERS = 64 * 1024;

/**
 * Why there is no whole answer. `code` is one of docs/protocol.md, or was found on this side: `unreachable` (nothing
 * answers), `connection_lost` (cut, and not to be had again), `not_a_relay` (something else answers). `status` is the
 * HTTP status, null inside a stream; `retryAfter` is in seconds; `partial` says whether text had come.
 */
export class RelayError extends Error {
  constructor(problem, { status = null, retryAfter = null, cause } = {}) {
    super(problem.message, { cause });
    this.name = "RelayError";
    this.code = problem.code;
    this.type = problem.type ?? "";
    this.param = problem.param ?? null;
    this.phase = problem.phase ?? null;
    this.retryable = problem.retryable ?? false;
    this.partial = problem.partial ?? false;
    this.upstreamStatus = problem.upstream_status ?? null;
    this.requestId = problem.request_id ?? null;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The requests. Each resolves to {id, body}, the body null where nothing is left, and throws RelayError. */
export class Wire {
  #base;
  #headers;
  #fetch;

  constructor(base, headers = {}, fetch = (url, init) => globalThis.fetch(url, init)) {
    this.#base = base.replace(/\/+$/, "");
    this.#headers = headers;
    this.#fetch = fetch;
  }

  ask(request, signal) {
    const headers = { "content-type": "application/json" };
    return this.#open("/chat/stream", { method: "POST", headers, body: JSON.stringify(request), signal });
  }

  attach(id, after, signal) {
    return this.#open(`/chat/stream/${id}?after=${after}`, { signal });
  }

  /**
   * Whether the relay has taken the order to stop, in time. Over HTTP/1.1 the order may wait behind six open streams:
   * the answer is then false, and the order goes through as soon as one of them is closed.
   */
  async stop(id) {
    const url = `${this.#base}/chat/stream/${id}`;
    const order = this.#fetch(url, { method: "DELETE", headers: this.#headers });
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, STOP_SECONDS * 1000, { ok: false })));
    try {
      return (await Promise.race([order, late])).ok;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  async #open(path, init) {
    const response = await this.#request(path, init);
    const id = response.headers.get("x-stream-id");
    if (response.status === 204) return { id, body: null };
    if (response.ok && response.headers.get("content-type")?.startsWith("text/event-stream")) {
      return { id, body: response.body };
    }
    throw await refusal(response);
  }

  async #request(path, init) {
    try {
      const headers = { ...this.#headers, ...init.headers, accept: "text/event-stream" };
      return await this.#fetch(this.#base + path, { ...init, headers });
    } catch (cause) {
      const message = `No relay answers at ${this.#base || "this page's origin"}.`;
      throw new RelayError({ code: "unreachable", message, retryable: true }, { cause });
    }
  }
}

/** Bytes in any cut to the payloads of `data` lines: the dialect puts each event on one line, ended by LF. */
export class Lines {
  #decoder = new TextDecoder();
  #rest = "";

  receive(bytes) {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n");
    this.#rest = lines.pop();
    if (this.#rest.length > MAX_LINE_CHARACTERS) throw notARelay("a line without an end");
    return payloads(lines);
  }
}

function payloads(lines) {
  return lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
}

export function parse(data) {
  const event = parsed(data);
  if (typeof event?.type !== "string" || typeof event.content !== "string") throw notARelay("an event without a type");
  return event;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What an answer that is no stream says: the error object as JSON, or in an `error` event. */
async function refusal(response) {
  const text = (await response.text().catch(() => "")).slice(0, MAX_REFUSAL_CHARACTERS);
  const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
  const about = { status: response.status, retryAfter: Number.isNaN(retryAfter) ? null : retryAfter };
  for (const data of [text, ...payloads(text.split("\n"))]) {
    const problem = parsed(data)?.error;
    if (typeof problem?.code === "string") return new RelayError(problem, about);
  }
  return notARelay(`HTTP ${response.status} without the relay's error object`, about);
}

/** A gateway's own 502, 503 or 504 is what a relay that restarts looks like from outside: worth another try. */
function notARelay(why, about = {}) {
  const retryable = [408, 429, 502, 503, 504].includes(about.status);
  return new RelayError({ code: "not_a_relay", message: `What answers there is no relay: ${why}.`, retryable }, about);
}
