// Reads answers through relay-client.js as stdin tells, twenty at a time, and prints what came of each.

import { text } from "node:stream/consumers";
import { RelayClient } from "../../app/static/relay-client.js";

const AT_ONCE = 20;

const { base, jobs } = JSON.parse(await text(process.stdin));
const results = [];
const todo = jobs.entries();
await Promise.all(Array.from({ length: AT_ONCE }, work));
process.stdout.write(JSON.stringify(results));

async function work() {
  for (const [at, job] of todo) results[at] = await read(job);
}

/** `on` says what to do when an event of a type comes: {delta: "stop" | "leave" | "abort"}; `at` when a state does. */
async function read({ request, id, after, client, on = {}, at = {} }) {
  const [events, states, leaving] = [[], [], new AbortController()];
  const acts = { stop: () => answer.stop(), abort: () => leaving.abort() };
  const onState = (state) => {
    states.push(state);
    acts[at[state.name]]?.();
  };
  const relay = new RelayClient(base, { backoffSeconds: 0.001, ...client });
  const options = { after, signal: leaving.signal, onState };
  const answer = id ? relay.attach(id, options) : relay.stream(request ?? { message: "hi" }, options);
  let error = null;
  try {
    for await (const event of answer) {
      events.push(event);
      if (on[event.type] === "leave") break;
      acts[on[event.type]]?.();
    }
  } catch (caught) {
    error = { ...caught, name: caught.name, message: caught.message };
  }
  return { id: answer.id, seq: answer.seq, text: events.map(({ content }) => content).join(""), events, states, error };
}
