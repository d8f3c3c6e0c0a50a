// Asks with LangChain's ChatOpenAI what a test lists as JSON, and prints what came of each, as JSON.
import { ChatOpenAI } from "@langchain/openai";

const configuration = { baseURL: `${process.env.RELAY_URL}/v1` };
const outcomes = [];
for (const [way, question, more] of JSON.parse(process.argv[2])) {
  const model = new ChatOpenAI({ model: "demo", apiKey: "any", configuration, maxRetries: 0, ...more });
  outcomes.push(await { stream, invoke, leave, abort, structured }[way](model, question));
}
console.log(JSON.stringify(outcomes));

async function stream(model, question) {
  let answer;
  try {
    for await (const chunk of await model.stream(question)) answer = answer?.concat(chunk) ?? chunk;
  } catch (error) {
    return { ...failure(error), text: answer?.text ?? "" };
  }
  return heard(answer);
}

async function invoke(model, question) {
  return model.invoke(question).then(heard, failure);
}

async function leave(model, question) {
  for await (const { text } of await model.stream(question)) return { text };
}

async function abort(model, question) {
  const leave = new AbortController();
  try {
    for await (const _ of await model.stream(question, { signal: leave.signal })) leave.abort();
  } catch (error) {
    return { text: error.message };
  }
}

async function structured(model, question) {
  const schema = { title: "weather", type: "object", properties: { city: { type: "string" } } };
  return model.withStructuredOutput(schema, { method: "jsonSchema" }).invoke(question).catch(failure);
}

function heard({ text, additional_kwargs, tool_calls, usage_metadata }) {
  const calls = tool_calls.map(({ id, name, args }) => [id, name, args]);
  return { text, reasoning: additional_kwargs.reasoning_content ?? "", calls, tokens: usage_metadata?.total_tokens };
}

function failure(error) {
  return { error: { class: error.constructor.name, status: error.status ?? null, code: error.code ?? null } };
}
