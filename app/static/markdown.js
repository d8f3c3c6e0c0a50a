/**
 * Markdown as it grows. Each render looks at the end of the text alone: blocks before the last two cannot change any
 * more (a reference defined later is the exception, and `finish` reads the whole once again), so that a long answer
 * costs no more per frame than a short one, and what a reader has selected above stays selected.
 *
 * What a model writes is a stranger's text. It is sanitised on every render, down to the few elements below; pictures
 * are shown as links, since loading one tells a stranger what was asked.
 */

import { marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { copyButton } from "./copy.js";

const RULES = {
  ALLOWED_TAGS: (
    "p br hr h1 h2 h3 h4 h5 h6 strong b em i u del s sub sup kbd mark a blockquote pre code ul ol li " +
    "table thead tbody tr th td details summary"
  ).split(" "),
  ALLOWED_ATTR: ["href", "title", "start", "align", "data-language", "open"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["start", "align", "data-language", "open"], // these hold no address
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** All but a few bare tags that mean something in text: whatever else is written as HTML is shown as it is written. */
const OTHER_TAG = /<(?!\/?(?:br|sub|sup|kbd|mark|b|i|u|s|em|strong|details|summary)\s*\/?>)/gi;

marked.use({
  renderer: {
    // Not left to the sanitiser: the inert document it parses in is under the page's policy too, and complains.
    html({ text }) {
      return text.replace(OTHER_TAG, "&lt;");
    },
    code({ text, lang }) {
      const language = escaped((lang ?? "").split(/\s/)[0]);
      return `<pre><code data-language="${language}">${escaped(text)}\n</code></pre>`;
    },
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
    },
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("rel", "noopener noreferrer");
    node.setAttribute("target", "_blank");
  }
});

function escaped(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

export class Markdown {
  #element;
  #settled = 0; // characters in blocks that no longer change
  #open = []; // {raw, element} of those that may

  constructor(element) {
    this.#element = element;
  }

  /** Shows a text that begins with the one shown before. */
  show(text) {
    const tokens = marked.lexer(normal(text).slice(this.#settled));
    const same = this.#open.findIndex(({ raw }, at) => raw !== tokens[at]?.raw);
    const kept = same < 0 ? this.#open.length : same;
    for (const { element } of this.#open.splice(kept)) element.remove();
    this.#open.push(...tokens.slice(kept).map((token) => ({ raw: token.raw, element: block(token) })));
    this.#element.append(...this.#open.slice(kept).map(({ element }) => element));
    while (this.#open.length > 2) this.#settled += this.#open.shift().raw.length;
  }

  /** Shows the whole text, which is final. */
  finish(text) {
    this.#settled = text.length;
    this.#open = [];
    this.#element.replaceChildren(...marked.lexer(normal(text)).map(block));
  }
}

/** A block's length in the text must be that of what the lexer calls raw: it takes CRLF for one character. */
function normal(text) {
  return text.replace(/\r\n?/g, "\n");
}

function block(token) {
  const element = document.createElement("div");
  element.className = "block";
  element.append(DOMPurify.sanitize(marked.parser([token]), RULES));
  for (const pre of element.querySelectorAll("pre")) pre.replaceWith(framed(pre));
  for (const table of element.querySelectorAll("table")) table.replaceWith(scrollable(table));
  return element;
}

function framed(pre) {
  const code = pre.cloneNode(true);
  const frame = document.createElement("div");
  frame.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const language = document.createElement("span");
  language.textContent = pre.querySelector("code")?.dataset.language ?? "";
  bar.append(language, copyButton("copyCode", () => code.textContent.replace(/\n$/, "")));
  frame.append(bar, focusable(code));
  return frame;
}

function scrollable(table) {
  const frame = document.createElement("div");
  frame.className = "table";
  frame.append(table.cloneNode(true));
  return focusable(frame);
}

/** What scrolls sideways must do so by keyboard too. */
function focusable(element) {
  element.tabIndex = 0;
  return element;
}
