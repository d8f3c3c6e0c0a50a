// A page with the AI SDK in it, without the page: each line of stdin is a command, each line of stdout its answer.

import { createInterface } from "node:readline";
import { Chat } from "@ai-sdk/react";
import { convertToModelMessages, DefaultChatTransport, parseJsonEventStream, uiMessageChunkSchema } from "ai";

const base = process.argv[2];
const cookies = new Map();
let chat;
let pending;
let page = new AbortController();
let ends = [];
let requests = [];

/** As a browser does it: cookies are kept, and all connections end with the page. */
async function fetchWithCookies(path, init = {}) {
  const headers = new Headers(init.headers);
  if (cookies.size) headers.set("cookie", [...cookies].map((pair) => pair.join("=")).join("; "));
  const signals = [page.signal, init.signal].filter(Boolean);
  const response = await fetch(base + path, { ...init, headers, signal: AbortSignal.any(signals) });
  for (const cookie of response.headers.getSetCookie()) {
    const [name, value] = cookie.split(";")[0].split("=");
    cookies.set(name, value);
  }
  requests.push(`${init.method ?? "GET"} ${path} ${response.status}`);
  return response;
}

const textOf = (message) => partsOf(message, "text").map((part) => part.text).join("");
const partsOf = (message, type) => (message?.parts ?? []).filter((part) => part.type === type);

function state() {
  return { status: chat.status, error: chat.error?.message ?? null, messages: chat.messages, ends, requests };
}

const commands = {
  /** A chat on the page; what it asked before is forgotten, as in another component. */
  open({ messages = [], id = "chat-1", body, headers }) {
    const onFinish = ({ message: _message, messages: _messages, ...end }) => ends.push(end);
    const transport = new DefaultChatTransport({ fetch: fetchWithCookies, body, headers });
    [ends, requests] = [[], []];
    chat = new Chat({ id, messages, transport, onFinish, onError: () => {} });
  },
  /** The page goes, and another is loaded with the messages that the application kept. */
  reload(options) {
    page.abort();
    page = new AbortController();
    commands.open({ messages: structuredClone(chat.messages), ...options });
  },
  ask({ text, ...options }) {
    pending = chat.sendMessage({ text }, options);
  },
  send({ message, ...options }) {
    pending = chat.sendMessage(message, options);
  },
  resume() {
    pending = chat.resumeStream();
  },
  again(options) {
    pending = chat.regenerate(options);
  },
  output({ tool, toolCallId, output }) {
    return chat.addToolOutput({ tool, toolCallId, output });
  },
  async result({ tool, toolCallId, output }) {
    await chat.addToolOutput({ tool, toolCallId, output });
    pending = chat.sendMessage();
  },
  /** Until the last message shows so much of the text. */
  async shows({ text }) {
    while (!textOf(chat.lastMessage).startsWith(text)) {
      if (chat.status === "error") throw chat.error;
      await new Promise(setImmediate);
    }
  },
  async over() {
    await pending;
    return state();
  },
  async stop() {
    await chat.stop();
    return state();
  },
  async delete() {
    return (await fetchWithCookies(`/api/chat/${chat.id}/stream`, { method: "DELETE" })).status;
  },
  forget() {
    cookies.clear();
  },
  /** Every part of a stream as the SDK's own schema sees it. */
  async parts({ body }) {
    const headers = { "content-type": "application/json" };
    const response = await fetchWithCookies("/api/chat", { method: "POST", headers, body: JSON.stringify(body) });
    const stream = parseJsonEventStream({ stream: response.body, schema: uiMessageChunkSchema });
    const parts = [];
    for await (const { success, value, error } of stream) parts.push({ success, value, error: error?.message });
    return parts;
  },
  convert({ messages }) {
    return convertToModelMessages(messages);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  const answer = await Promise.resolve(options)
    .then(commands[command])
    .then(
      (value) => ({ value: value ?? null }),
      (error) => ({ error: String(error) }),
    );
  process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
