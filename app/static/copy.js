/** Buttons that copy. */

import { text } from "./texts.js";

const SHOWN_MILLISECONDS = 1500;

export function copyButton(name, content) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet small";
  button.textContent = text("copy");
  button.setAttribute("aria-label", text(name));
  button.addEventListener("click", async () => {
    await copy(content());
    button.textContent = text("copied");
    setTimeout(() => (button.textContent = text("copy")), SHOWN_MILLISECONDS);
  });
  return button;
}

/** A page that came over plain HTTP from another machine has no clipboard: the old way works there. */
async function copy(content) {
  if (navigator.clipboard) return navigator.clipboard.writeText(content);
  const area = document.createElement("textarea");
  area.value = content;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
