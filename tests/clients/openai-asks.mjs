// Asks with openai-node what a test lists as JSON, and prints what came of each: an answer, or an error, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.RELAY_URL}/v1`, apiKey: "any", maxRetries: 0 });
const ways = {
  stream: (body, options) => collected(client.chat.completions.create({ ...body, stream: true }, options)),
  whole: (body, options) => client.chat.completions.create(body, options),
  helper: (body, options) => client.chat.completions.stream(body, options).finalChatCompletion(),
  parse: (body, options) => client.chat.completions.parse(body, options),
  runTools: (body, options) => toolRun(body, options),
  models: async () => (await client.models.list()).data,
  model: ({ model }) => client.models.retrieve(model),
  embeddings: (body, options) => client.embeddings.create(body, options),
};
const outcomes = [];
for (const [way, body, options] of JSON.parse(process.argv[2])) {
  outcomes.push(await ways[way](body, options).then((answer) => ({ answer }), failure));
}
console.log(JSON.stringify(outcomes));

async function collected(asked) {
  const chunks = [];
  try {
    for await (const chunk of await asked) chunks.push(chunk);
  } catch (error) {
    throw Object.assign(error, { chunks });
  }
  return chunks;
}

async function toolRun(body, options) {
  const asked = [];
  const look = (args) => `${asked.push(args)} °C`;
  const tools = ["get_weather", "get_time"].map((name) => ({
    type: "function",
    function: { name, function: look, parse: JSON.parse, parameters: { type: "object", properties: {} } },
  }));
  const run = client.chat.completions.runTools({ ...body, tools, stream: true }, options);
  return { text: await run.finalContent(), asked };
}

function failure(error) {
  const { status = null, code = null, param = null, requestID = null, chunks = [] } = error;
  return { error: { class: error.constructor.name, status, code, param, requestID, message: error.message }, chunks };
}
