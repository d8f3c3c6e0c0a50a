/** The chat page: the conversation, its views and the one answer that runs at a time. */

import { AnswerView, questionView } from "./answer-view.js";
import { Composer } from "./composer.js";
import { Conversation, fail, take } from "./conversation.js";
import { RelayClient } from "./relay-client.js";
import { followEnd } from "./scroller.js";
import { enter } from "./session.js";
import { explained, suggestions, text, translate } from "./texts.js";

const SAVE_MILLISECONDS = 1000; // what a crash may cost; a reload saves by itself

const element = (id) => document.getElementById(id);
const client = new RelayClient(new URL(".", document.baseURI).href);
const conversation = Conversation.load();
const transcript = element("transcript");
const composer = new Composer({ onSend: ask, onStop: stop });
const toEnd = followEnd(element("scroller"), transcript, element("latest"));

let stream = null;
let leaving = false;

function ask(question) {
  const answer = conversation.ask(question);
  transcript.append(questionView(conversation.turns.at(-2)));
  begin(answer);
}

function askAgain() {
  if (stream) return;
  const answer = conversation.askAgain();
  transcript.lastElementChild.remove();
  begin(answer);
  composer.focus();
}

function begin(answer) {
  const view = new AnswerView(answer, { onRegenerate: askAgain });
  transcript.append(view.element);
  toEnd();
  follow(answer, view);
}

/** Reads the running answer to its end: a new one, or the one that a reload has interrupted. */
async function follow(answer, view) {
  const { id, seq } = conversation.running;
  const onState = (state) => connection(answer, view, state);
  const mine = id ? client.attach(id, { after: seq, onState }) : client.stream(conversation.request(), { onState });
  stream = mine;
  running(true);
  save();
  const saving = setInterval(save, SAVE_MILLISECONDS);
  try {
    for await (const event of mine) note(answer, view, event);
    if (answer.state === "running") answer.state = "done";
  } catch (error) {
    fail(answer, error);
  }
  clearInterval(saving);
  if (stream === mine && !leaving) over(answer, view);
}

function note(answer, view, event) {
  if (answer !== conversation.last) return; // it was cleared away
  if (event.seq !== undefined) conversation.running.seq = event.seq;
  take(answer, event);
  view.changed();
}

function connection(answer, view, state) {
  if (state.name === "resumed") {
    answer.resumed += 1;
    announce(text("sayResumed"));
  }
  view.enter(state);
}

function over(answer, view) {
  stream = null;
  conversation.running = null;
  delete answer.stopping;
  running(false);
  save();
  view.end();
  announce(said(answer));
}

function said(answer) {
  if (answer.state === "failed") return text("sayFailed", { why: explained(answer.error) });
  return text(answer.state === "stopped" ? "sayStopped" : "sayDone");
}

function stop() {
  if (!stream) return;
  conversation.last.stopping = true;
  stream.stop();
}

/** The answer that runs is stopped, and nobody looks at its end any more. */
function clear() {
  stream?.stop();
  stream = null;
  conversation.clear();
  transcript.replaceChildren();
  running(false);
  save();
  composer.focus();
}

function running(is) {
  composer.running = is;
  transcript.setAttribute("aria-busy", String(is));
  element("welcome").hidden = conversation.turns.length > 0;
  element("clear").hidden = conversation.turns.length === 0;
  if (is) announce(text("sayAnswering"));
}

function announce(words) {
  element("announcer").textContent = words;
}

function save() {
  if (conversation.running) conversation.running.id = stream?.id ?? conversation.running.id;
  if (!leaving) conversation.save();
}

function showOptions(are) {
  element("options").hidden = !are;
  element("options-toggle").setAttribute("aria-expanded", String(are));
}

function wireOptions() {
  for (const name of ["model", "system"]) {
    element(name).value = conversation[name];
    element(name).addEventListener("input", () => {
      conversation[name] = element(name).value;
      save();
    });
  }
  element("options-toggle").addEventListener("click", () => showOptions(element("options").hidden));
  showOptions(Boolean(conversation.model || conversation.system));
}

function suggest() {
  for (const words of suggestions()) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", () => ask(words));
    item.append(button);
    element("suggestions").append(item);
  }
}

/** Shows what was said before; the answer that was running goes on. */
function restore() {
  for (const turn of conversation.turns) {
    if (turn.role === "user") transcript.append(questionView(turn));
    else if (turn !== conversation.last || !conversation.running) {
      transcript.append(new AnswerView(turn, { onRegenerate: askAgain }).element);
    }
  }
  running(false);
  if (conversation.running) begin(conversation.last);
}

translate(document);
wireOptions();
suggest();
await enter();
restore();
element("clear").addEventListener("click", clear);
// The browser cuts the connection of a page that it leaves: what that looks like from here is not to be kept.
addEventListener("pagehide", () => {
  save();
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false));
