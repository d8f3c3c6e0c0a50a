/**
 * What was said and where the running answer is. It lives in sessionStorage, so that a reload comes back to it: text and
 * cursor are written together, and whatever is missing from the one is asked for by the other.
 */

const KEY = "sse-relay";

export class Conversation {
  turns = [];
  model = "";
  system = "";
  /** {id, seq} of the stream that writes the last turn; the id is null until the relay has answered. */
  running = null;

  static load() {
    const conversation = new Conversation();
    try {
      Object.assign(conversation, JSON.parse(sessionStorage.getItem(KEY)));
    } catch {
      sessionStorage.removeItem(KEY);
    }
    return conversation;
  }

  /** Storage may be full, or forbidden: the conversation is then as long as the page. */
  save() {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this));
    } catch (error) {
      console.info("The conversation will not survive a reload:", error.message);
    }
  }

  get last() {
    return this.turns.at(-1);
  }

  /** A question and the answer to come. */
  ask(question) {
    this.turns.push({ role: "user", text: question });
    return this.#expect();
  }

  /** The last question again; what was answered to it goes. */
  askAgain() {
    this.turns.pop();
    return this.#expect();
  }

  #expect() {
    const answer = { role: "assistant", state: "running", text: "", reasoning: "", refusal: "", tools: [] };
    this.turns.push(Object.assign(answer, { pieces: 0, resumed: 0 }));
    this.running = { id: null, seq: -1 };
    return this.last;
  }

  clear() {
    this.turns = [];
    this.running = null;
  }

  /** The body of `POST /chat/stream` that asks for the last turn. */
  request() {
    const said = this.turns.slice(0, -1).map(({ role, text, refusal }) => ({ role, content: text || refusal || "" }));
    const request = { messages: said.filter((message) => message.content) };
    if (this.system.trim()) request.system = this.system;
    if (this.model.trim()) request.model = this.model.trim();
    return request;
  }
}

/** What an event adds to an answer. */
export function take(answer, event) {
  switch (event.type) {
    case "start":
      answer.model = event.model;
      break;
    case "delta":
      answer.text += event.content;
      break;
    case "reasoning":
      answer.reasoning += event.reasoning;
      break;
    case "refusal":
      answer.refusal += event.refusal;
      break;
    case "tool_call":
      takeCall(answer, event.tool_call);
      break;
    case "done":
      answer.state = event.finish_reason === "cancelled" ? "stopped" : "done";
      Object.assign(answer, { finish: event.finish_reason, usage: event.usage, timings: event.timings });
      break;
  }
  if (["delta", "reasoning", "refusal", "tool_call"].includes(event.type)) answer.pieces += 1;
}

function takeCall(answer, { index, name, arguments: more }) {
  const call = (answer.tools[index] ??= { name: "", arguments: "" });
  call.name ||= name ?? "";
  call.arguments += more;
}

export function fail(answer, error) {
  answer.state = "failed";
  answer.error = { code: error.code ?? "internal", message: error.message, request: error.requestId ?? null };
}
