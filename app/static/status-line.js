/** The line under an answer: how its connection does while it runs, and what it was when it is over. */

import { language, text } from "./texts.js";

const MIN_RATED_SECONDS = 0.05; // over less than that a rate says nothing
const ENDS = { length: "cutByLength", content_filter: "filtered" };

/** `milliseconds` since the page began to follow it. */
export function progress(answer, state, milliseconds) {
  const parts = [text(phase(answer, state), state)];
  if (state.name === "connecting" || state.name === "waiting") parts.push(seconds(milliseconds));
  if (answer.pieces) parts.push(text("tokensAbout", { count: number(answer.pieces) }));
  if (answer.resumed) parts.push(text("resumed"));
  return parts.join(" · ");
}

function phase(answer, state) {
  if (answer.stopping) return "stopping";
  if (state.name === "waiting") return { queued: "queued", connecting: "connecting" }[state.phase] ?? "waiting";
  return state.name === "reconnecting" || state.name === "streaming" ? state.name : "waiting";
}

function seconds(milliseconds) {
  return text("elapsed", { seconds: Math.max(Math.floor(milliseconds / 1000), 0) });
}

export function about({ model, usage, timings, state, finish, resumed }) {
  const parts = [model];
  if (usage) parts.push(text(usage.source === "estimated" ? "tokensAbout" : "tokens", counted(usage)));
  if (usage && timings) parts.push(rate(usage, timings));
  if (timings?.first_token_s != null) parts.push(text("firstToken", { seconds: number(timings.first_token_s, 2) }));
  if (state === "stopped") parts.push(text("stopped"));
  if (ENDS[finish]) parts.push(text(ENDS[finish]));
  if (resumed) parts.push(text("resumed"));
  return parts.filter(Boolean).join(" · ");
}

function counted(usage) {
  return { count: number(usage.completion_tokens) };
}

function rate(usage, timings) {
  const writing = timings.total_s - timings.first_token_s;
  if (timings.first_token_s === null || writing < MIN_RATED_SECONDS) return "";
  return text("rate", { rate: number(usage.completion_tokens / writing) });
}

function number(value, maximumFractionDigits = 0) {
  return value.toLocaleString(language, { maximumFractionDigits });
}
