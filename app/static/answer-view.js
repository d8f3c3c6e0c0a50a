/** One answer on the page: thoughts, text, tool calls, a failure, and a line about it all. Drawn once a frame at most. */

import { copyButton } from "./copy.js";
import { Markdown } from "./markdown.js";
import { about, progress } from "./status-line.js";
import { explained, text } from "./texts.js";

const REST_PER_WORK = 3; // a page that only draws answers no key: after drawing it rests three times as long

export class AnswerView {
  element = make("article", "turn answer");
  #answer;
  #state = { name: "connecting" };
  #began = performance.now();
  #frame = 0;
  #restUntil = 0;
  #ticker = 0;
  #thoughts = make("details", "thoughts");
  #thinking = make("div", "thinking");
  #body = make("div", "prose");
  #markdown = new Markdown(this.#body);
  #tools = make("div", "tools");
  #problem = make("div", "problem");
  #line = make("p", "line");
  #actions = make("div", "actions");

  constructor(answer, { onRegenerate }) {
    this.#answer = answer;
    this.element.setAttribute("aria-label", text("answer"));
    this.#thoughts.append(make("summary"), this.#thinking);
    const again = make("button", "quiet small regenerate", text("regenerate"));
    again.type = "button";
    again.addEventListener("click", onRegenerate);
    this.#actions.append(copyButton("copy", () => answer.text || answer.refusal), again);
    const foot = make("footer");
    foot.append(this.#line, this.#actions);
    this.element.append(this.#thoughts, this.#body, this.#tools, this.#problem, foot);
    if (answer.state === "running") this.#begin();
    else this.end();
  }

  /** While it runs a screen reader is told nothing of it: the end makes it all new, and that is read once. */
  #begin() {
    this.element.setAttribute("aria-live", "off");
    this.#ticker = setInterval(() => this.changed(), 1000);
    this.#draw();
  }

  enter(state) {
    this.#state = state;
    this.changed();
  }

  /** The answer or its connection is not what was drawn. */
  changed() {
    this.#frame ||= requestAnimationFrame((now) => {
      this.#frame = 0;
      if (now < this.#restUntil) return this.changed();
      this.#draw();
      const end = performance.now();
      this.#restUntil = end + (end - now) * REST_PER_WORK;
    });
  }

  end() {
    clearInterval(this.#ticker);
    cancelAnimationFrame(this.#frame);
    this.#frame = -1; // nothing is drawn after the end
    this.element.removeAttribute("aria-live");
    this.#draw();
    this.#markdown.finish(this.#answer.text || this.#answer.refusal);
  }

  #draw() {
    const answer = this.#answer;
    const running = answer.state === "running";
    this.element.dataset.state = running ? this.#state.name : answer.state;
    this.#drawThoughts();
    if (running) this.#markdown.show(answer.text || answer.refusal);
    this.#tools.replaceChildren(...answer.tools.filter(Boolean).map(toolCall));
    this.#problem.replaceChildren(...(answer.error ? failure(answer.error) : []));
    this.#line.textContent = running ? progress(answer, this.#state, performance.now() - this.#began) : about(answer);
    this.#actions.hidden = running;
    this.#actions.firstChild.hidden = !(answer.text || answer.refusal);
  }

  #drawThoughts() {
    const { reasoning, text: said, state } = this.#answer;
    this.#thoughts.hidden = !reasoning;
    const title = text(said || state !== "running" ? "thoughts" : "thinking");
    const summary = this.#thoughts.firstChild;
    if (summary.textContent !== title) summary.textContent = title;
    if (this.#thoughts.open || state !== "running") this.#thinking.textContent = reasoning;
  }
}

export function questionView(question) {
  const element = make("article", "turn question", question.text);
  element.setAttribute("aria-label", text("you"));
  return element;
}

function toolCall(call) {
  const element = make("div", "tool");
  element.append(make("span", "", text("tool", { name: call.name })), make("code", "", call.arguments));
  return element;
}

function failure(error) {
  const request = error.request ?? "–";
  return [make("p", "", explained(error)), make("p", "small", text("details", { message: error.message, request }))];
}

function make(tag, className = "", content = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = content;
  return element;
}
