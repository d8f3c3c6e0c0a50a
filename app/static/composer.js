/** Where questions are written: Enter sends, Shift+Enter breaks the line, Esc stops. */

export class Composer {
  #form = document.getElementById("composer");
  #message = document.getElementById("message");
  #send = document.getElementById("send");
  #stop = document.getElementById("stop");
  #running = false;

  constructor({ onSend, onStop }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#running && this.#message.value.trim()) onSend(this.#taken());
    });
    this.#message.addEventListener("input", () => this.#fit());
    this.#message.addEventListener("keydown", (event) => this.#key(event));
    this.#stop.addEventListener("click", onStop);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#running && !event.isComposing) onStop();
    });
    this.#fit();
  }

  set running(running) {
    const focused = document.activeElement === this.#send || document.activeElement === this.#stop;
    this.#running = running;
    this.#send.hidden = running;
    this.#stop.hidden = !running;
    if (focused) this.#message.focus(); // the button under the finger has gone
  }

  focus() {
    this.#message.focus();
  }

  /** With an input method Enter takes a word over; some browsers say so by key code 229 alone. */
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  #taken() {
    const question = this.#message.value.trim();
    this.#message.value = "";
    this.#fit();
    return question;
  }

  #fit() {
    this.#send.disabled = !this.#message.value.trim();
    this.#message.style.height = "auto";
    this.#message.style.height = `${this.#message.scrollHeight}px`;
  }
}
