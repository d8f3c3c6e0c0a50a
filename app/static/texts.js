/** The page's words in the browser's language: whatever is Chinese is served simplified, all else English. */

import en from "./texts/en.js";
import zhCN from "./texts/zh-CN.js";

const chinese = navigator.language.toLowerCase().startsWith("zh");
const texts = chinese ? zhCN : en;

export const language = chinese ? "zh-CN" : "en";

/** A text by its key, its {names} filled in. */
export function text(key, values = {}) {
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** What an error's code means to a reader, or the relay's own words where it is none we know. */
export function explained(error) {
  return texts.errors[error.code] ?? error.message;
}

export function suggestions() {
  return texts.suggestions;
}

/** Fills in the texts that the document names by `data-text`, `data-placeholder` and `data-label`. */
export function translate(document) {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(element.dataset.placeholder);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.title = text(element.dataset.label);
    element.setAttribute("aria-label", element.title);
  }
}
