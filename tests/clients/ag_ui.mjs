// What AG-UI's own HttpAgent makes of runs, told as one line of JSON: a run for each question of the conversation, or
// one for each stream of streams.json, which stands in for the network. It checks each event against the protocol's
// schema and their order against its rules, and warns of what it does not know.
import { existsSync, readFileSync } from "node:fs";
import { HttpAgent } from "@ag-ui/client";

const { RELAY_URL, PARAMETERS = "{}", MESSAGES = "[]", HEADERS = "{}", STOP_BEHIND, ANSWER } = process.env;
const streams = new URL("./streams.json", import.meta.url);
const warnings = [];
console.warn = console.error = (...words) => warnings.push(words.map(String).join(" "));

/** Runs the agent, and returns all that its application was told of the run. */
async function observed(agent) {
  const seen = { events: [], calls: [], ended: [], failed: null, error: null, warnings };
  const before = warnings.length;
  const subscriber = {
    onEvent({ event }) {
      seen.events.push(event);
      if (STOP_BEHIND && event.delta?.includes(STOP_BEHIND)) agent.abortRun();
    },
    onToolCallEndEvent({ event, toolCallName, toolCallArgs }) {
      seen.calls.push([event.toolCallId, toolCallName, toolCallArgs]);
    },
    onRunFinishedEvent: ({ outcome, pendingToolCallIds }) => void seen.ended.push([outcome, pendingToolCallIds]),
    onRunErrorEvent: ({ event }) => void (seen.failed = event),
  };
  try {
    await agent.runAgent(JSON.parse(PARAMETERS), subscriber);
  } catch (error) {
    seen.error = { message: error.message, status: error.status ?? null, payload: error.payload ?? null };
  }
  return { ...seen, warnings: warnings.slice(before), messages: structuredClone(agent.messages) };
}

function replaying(text) {
  const fetch = async () => new Response(text, { headers: { "content-type": "text/event-stream" } });
  return new HttpAgent({ url: "http://nowhere/ag-ui", fetch });
}

async function asked() {
  const headers = JSON.parse(HEADERS);
  const agent = new HttpAgent({ url: `${RELAY_URL}/ag-ui`, headers, initialMessages: JSON.parse(MESSAGES) });
  const runs = [];
  for (const [index, question] of process.argv[2].split(",").entries()) {
    const calls = agent.messages.at(-1)?.toolCalls ?? [];
    calls.forEach(({ id }) => agent.messages.push({ id: `of-${id}`, role: "tool", toolCallId: id, content: ANSWER }));
    if (question) agent.messages.push({ id: `question-${index}`, role: "user", content: question });
    runs.push(await observed(agent));
  }
  return runs;
}

const runs = [];
if (existsSync(streams)) {
  for (const text of JSON.parse(readFileSync(streams))) runs.push(await observed(replaying(text)));
} else {
  runs.push(...(await asked()));
}
process.stdout.write(JSON.stringify(runs));
