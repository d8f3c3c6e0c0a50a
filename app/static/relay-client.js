/**
 * Reads answers from a relay (protocol 1, docs/protocol.md). This file and relay-wire.js are ES modules
 * without dependencies, for browsers and Node 20.
 *
 *     const client = new RelayClient();
 *     const answer = client.stream({ message: "Hello" });
 *     for await (const event of answer) text += event.content;
 *
 * - Events are the protocol's own objects, each with `type` and a string `content`; pass over types you do not know.
 * - A lost connection is not a lost answer: the stream comes back by itself with its cursor, and each event arrives
 *   exactly once. What tells loss from end is `[DONE]`: a stream that ends without it was cut.
 * - `answer.stop()` ends the generation; what was written stays, and the last event is `done`, "cancelled".
 *   Leaving the loop, or aborting `signal`, closes this connection alone: the relay waits for somebody to come back.
 * - A failure is thrown as RelayError; one that came inside the stream is an `error` event first.
 */

import { Lines, RelayError, Wire, parse } from "./relay-wire.js";

export { RelayError };

const MAX_BACKOFF_SECONDS = 8;
const MAX_RETRY_AFTER_SECONDS = 30;
const CANCELLED = Object.freeze({ type: "done", content: "", finish_reason: "cancelled" });
const CARRYING = new Set(["delta", "reasoning", "refusal", "tool_call"]);

/**
 * One relay. `base` is its URL, or "" for the page's own origin. `reconnects` bounds the tries in a row to get a lost
 * stream back: the first after about `backoffSeconds`, each next one after twice as long, 8 s at most, with jitter.
 * After `silenceSeconds` without a byte (the relay's heartbeat is 15 s) a connection is taken for lost.
 */
export class RelayClient {
  #relay;

  constructor(base = "", { headers, fetch, reconnects = 8, backoffSeconds = 0.25, silenceSeconds = 60 } = {}) {
    this.#relay = { wire: new Wire(base, headers, fetch), reconnects, backoffSeconds, silenceSeconds };
  }

  /** One generation, begun by the first step of the iteration. `request` has the fields of `POST /chat/stream`. */
  stream(request, { signal, onState } = {}) {
    return new AnswerStream(this.#relay, { request: { on_disconnect: "wait", ...request }, signal, onState });
  }

  /** A stream that was begun before, from behind the event `after` on: for a page that was reloaded. */
  attach(id, { after = -1, signal, onState } = {}) {
    return new AnswerStream(this.#relay, { id, after, signal, onState });
  }
}

/**
 * An answer as it arrives; made by RelayClient, to be iterated once. `id` is the stream's, null until the relay has
 * answered; `seq` is the cursor, the last event that was handed out. `state`, also told to `onState`, is
 * {name: "connecting" | "waiting" (phase, elapsed) | "streaming" | "reconnecting" (attempt) | "resumed" | "closed"}.
 */
export class AnswerStream {
  state = { name: "connecting" };
  #relay;
  #request;
  #signal;
  #onState;
  #events = this.#run();
  #connection = new AbortController();
  #wake = () => {};
  #began = performance.now();
  #failures = 0;
  #resumable = true;
  #partial = false;
  #over = false;
  #stopped = false;
  #hungUp = false;

  constructor(relay, { request = null, id = null, after = -1, signal, onState }) {
    this.#relay = relay;
    this.#request = request;
    this.#signal = signal;
    this.#onState = onState;
    this.id = id;
    this.seq = after;
  }

  [Symbol.asyncIterator]() {
    return this.#events;
  }

  /**
   * Ends the generation and keeps what was written. Before the relay has answered nobody else knows the stream, and
   * leaving is what ends it; where the relay cannot be told, it ends it after its grace. Never throws.
   */
  async stop() {
    if (this.#over || this.#stopped) return;
    this.#stopped = true;
    if (this.id === null || !(await this.#relay.wire.stop(this.id))) this.#hangUp();
  }

  async *#run() {
    const leave = () => this.#hangUp();
    this.#signal?.addEventListener("abort", leave);
    try {
      yield* this.#untilOver();
    } catch (error) {
      if (!this.#stopped || this.#over || this.#signal?.aborted) throw error;
      this.#over = true;
      yield CANCELLED;
    } finally {
      this.#signal?.removeEventListener("abort", leave);
      this.#connection.abort();
      this.#enter({ name: "closed" });
    }
  }

  async *#untilOver() {
    this.#enter(this.state);
    let body = await this.#open().catch((error) => {
      if (this.id === null || !error.retryable) throw error;
      return this.#comeBack();
    });
    while (!(yield* this.#read(body))) body = await this.#comeBack();
  }

  /** The events of one connection. Returns whether the stream is over; if not, the connection was lost. */
  async *#read(body) {
    if (body === null) return true;
    const reader = body.getReader();
    const lines = new Lines();
    for (let bytes; (bytes = await this.#bytes(reader)); ) {
      for (const data of lines.receive(bytes)) {
        if (data === "[DONE]" && !this.#over) throw this.#lost();
        if (data === "[DONE]") return true;
        const event = this.#take(data);
        if (event) yield event;
        if (event?.type === "error") throw new RelayError(event.error);
      }
    }
    return this.#over;
  }

  /** The next bytes, or null when the connection is gone, in whatever way: what that means the events tell. */
  async #bytes(reader) {
    try {
      const { value, done } = await this.#inTime(reader.read());
      return done ? null : value;
    } catch {
      this.#signal?.throwIfAborted();
      return null;
    }
  }

  async #inTime(step) {
    const timer = setTimeout(() => this.#connection.abort(), this.#relay.silenceSeconds * 1000);
    try {
      return await step;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The event, or undefined for one that was handed out before the connection was lost. */
  #take(data) {
    const event = parse(data);
    if (this.#over || (event.seq !== undefined && event.seq <= this.seq)) return undefined;
    if (event.seq !== undefined) [this.seq, this.#failures] = [event.seq, 0];
    this.#partial ||= event.content !== "";
    if (event.type === "start") [this.id, this.#resumable] = [event.id, event.resumable];
    if (event.type === "live_only") this.#resumable = false;
    if (event.type === "done" || event.type === "error") this.#over = true;
    this.#follow(event);
    return event;
  }

  #follow(event) {
    if (CARRYING.has(event.type) && this.state.name !== "streaming") this.#enter({ name: "streaming" });
    if (event.type === "start") {
      const elapsed = (performance.now() - this.#began) / 1000;
      this.#enter({ name: "waiting", phase: "waiting", elapsed });
    }
    if (event.type === "ping" && event.phase !== "streaming") {
      this.#enter({ name: "waiting", phase: event.phase, elapsed: event.elapsed_s });
    }
  }

  #enter(state) {
    this.state = state;
    this.#onState?.(state);
  }

  /** Asks for the stream: the body, or null when nothing of it is left. Throws RelayError. */
  async #open() {
    this.#signal?.throwIfAborted();
    if (this.#hungUp) throw this.#lost();
    this.#connection = new AbortController();
    const { wire } = this.#relay;
    const { signal } = this.#connection;
    try {
      const asked = this.id === null ? wire.ask(this.#request, signal) : wire.attach(this.id, this.seq, signal);
      const { id, body } = await this.#inTime(asked);
      this.id ??= id;
      this.#over ||= body === null;
      return body;
    } catch (error) {
      this.#signal?.throwIfAborted();
      error.partial ||= this.#partial;
      throw error;
    }
  }

  /** Back to where the connection was lost: what a refusal that may pass costs is one of the tries. */
  async #comeBack() {
    let atLeast = 0;
    while (!this.#hungUp && this.id !== null && this.#resumable && this.#failures < this.#relay.reconnects) {
      this.#failures += 1;
      this.#enter({ name: "reconnecting", attempt: this.#failures });
      await this.#pause(Math.max(atLeast, this.#backoff()));
      try {
        const body = await this.#open();
        this.#enter({ name: "resumed" });
        return body;
      } catch (error) {
        if (!(error instanceof RelayError && error.retryable)) throw error;
        atLeast = Math.min(MAX_RETRY_AFTER_SECONDS, error.retryAfter ?? 0);
      }
    }
    throw this.#lost();
  }

  #backoff() {
    const seconds = Math.min(MAX_BACKOFF_SECONDS, this.#relay.backoffSeconds * 2 ** (this.#failures - 1));
    return seconds * (0.5 + Math.random() / 2); // a relay that restarts must not meet all its readers at once
  }

  #pause(seconds) {
    if (this.#hungUp) return undefined;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#wake = () => resolve(clearTimeout(timer));
    });
  }

  #hangUp() {
    this.#hungUp = true;
    this.#connection.abort();
    this.#wake();
  }

  #lost() {
    const message = "The connection to the relay was lost before the answer was whole.";
    return new RelayError({ code: "connection_lost", message, retryable: true, partial: this.#partial });
  }
}
