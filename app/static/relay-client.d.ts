/** Types of relay-client.js; docs/protocol.md has the meaning of every field. */

export type Phase = "admission" | "connect" | "first_token" | "stream" | "relay";
export type Seconds = number;

/** `source` says who counted: upstream, or the relay where upstream told nothing. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  source: "reported" | "estimated";
}

/** `id` and `name` come with a call's first piece; the `arguments` (JSON text) are to be joined. */
export interface ToolCallPiece {
  index: number;
  id?: string;
  name?: string;
  arguments: string;
}

export interface Problem {
  code: string;
  message: string;
  type: string;
  param: string | null;
  phase: Phase | null;
  retryable: boolean;
  partial: boolean;
  upstream_status: number | null;
  request_id: string | null;
}

/** Kept events carry a `seq` as long as the stream can be resumed. Joining every `content` gives the answer. */
interface Kept {
  content: string;
  seq?: number;
}

export type RelayEvent =
  | (Kept & { type: "start"; protocol: 1; id: string; model: string; resumable: boolean })
  | (Kept & { type: "delta" })
  | (Kept & { type: "reasoning"; reasoning: string })
  | (Kept & { type: "refusal"; refusal: string })
  | (Kept & { type: "tool_call"; tool_call: ToolCallPiece })
  | (Kept & {
      type: "done";
      finish_reason: string;
      /** Missing only where `stop()` could not reach the relay. */
      usage?: Usage;
      timings?: { first_token_s: Seconds | null; total_s: Seconds };
    })
  | (Kept & { type: "error"; error: Problem })
  | { type: "ping"; content: ""; phase: "queued" | "connecting" | "waiting" | "streaming"; elapsed_s: Seconds }
  /** Upstream said what this dialect has no word for; only in a stream that was begun in OpenAI's. */
  | (Kept & { type: "chunk" })
  | { type: "live_only"; content: "" };

export type StreamState =
  | { name: "connecting" }
  | { name: "waiting"; phase: "queued" | "connecting" | "waiting"; elapsed: Seconds }
  | { name: "streaming" }
  | { name: "reconnecting"; attempt: number }
  | { name: "resumed" }
  | { name: "closed" };

export interface ContentPart {
  type: string;
  [field: string]: unknown;
}

export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | ContentPart[] | null;
  [field: string]: unknown;
}

export interface ChatFields {
  system?: string;
  model?: string;
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  max_completion_tokens?: number;
  stop?: string | string[];
  seed?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  tools?: unknown[];
  tool_choice?: unknown;
  parallel_tool_calls?: boolean;
  response_format?: unknown;
  reasoning_effort?: string;
  logit_bias?: Record<string, number>;
  user?: string;
  metadata?: Record<string, string>;
  timeouts?: { connect?: Seconds; first_token?: Seconds; idle?: Seconds; total?: Seconds };
  on_disconnect?: "cancel" | "wait" | "continue";
}

export type ChatRequest = ChatFields & ({ message: string } | { messages: Message[] });

export interface ClientOptions {
  /** Sent with every request, such as `authorization`. */
  headers?: Record<string, string>;
  fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Tries in a row to get a lost stream back; 8. */
  reconnects?: number;
  /** Before the first of them; each next one waits twice as long, 8 s at most; 0.25. */
  backoffSeconds?: Seconds;
  /** Without a byte for so long a connection is taken for lost; 60. */
  silenceSeconds?: Seconds;
}

export interface StreamOptions {
  /** Aborting it leaves: the connection is closed, and the relay waits its grace for somebody to come back. */
  signal?: AbortSignal;
  onState?: (state: StreamState) => void;
}

export class RelayClient {
  constructor(base?: string, options?: ClientOptions);
  stream(request: ChatRequest, options?: StreamOptions): AnswerStream;
  attach(id: string, options?: StreamOptions & { after?: number }): AnswerStream;
}

/** To be iterated once. The iteration throws RelayError, or the reason of an aborted `signal`. */
export class AnswerStream implements AsyncIterable<RelayEvent> {
  private constructor();
  /** Null until the relay has answered. */
  readonly id: string | null;
  /** The cursor: the last event that was handed out; -1 before the first. */
  readonly seq: number;
  readonly state: StreamState;
  /** Ends the generation; the stream then ends with `done`, finish_reason "cancelled". Never throws. */
  stop(): Promise<void>;
  [Symbol.asyncIterator](): AsyncGenerator<RelayEvent, void, void>;
}

export class RelayError extends Error {
  constructor(problem: Partial<Problem> & { code: string; message: string }, about?: {
    status?: number | null;
    retryAfter?: Seconds | null;
    cause?: unknown;
  });
  /** A code of docs/protocol.md, or `unreachable`, `connection_lost`, `not_a_relay`: found on this side. */
  readonly code: string;
  readonly type: string;
  readonly param: string | null;
  readonly phase: Phase | null;
  readonly retryable: boolean;
  /** Whether text had come. */
  readonly partial: boolean;
  readonly upstreamStatus: number | null;
  readonly requestId: string | null;
  /** The HTTP status; null inside a stream and without an answer. */
  readonly status: number | null;
  readonly retryAfter: Seconds | null;
}
