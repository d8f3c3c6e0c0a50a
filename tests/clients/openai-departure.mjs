// Reads an answer with openai-node, or leaves it in one of the ways there are, and stays until it is ended.
import OpenAI from "openai";

const [way] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${process.env.RELAY_URL}/v1`, apiKey: "any", maxRetries: 0 });
const request = { model: "demo", messages: [{ role: "user", content: "hi" }] };
const leave = new AbortController();
const ways = { read, break: breaks, controller, signal, whole };

await ways[way]();
if (way !== "read") {
  console.log("left");
  setInterval(() => {}, 1000);
}

async function read() {
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    process.stdout.write(chunk.choices[0].delta.content ?? "");
  }
}

async function breaks() {
  for await (const _ of await client.chat.completions.create({ ...request, stream: true })) break;
}

async function controller() {
  const stream = await client.chat.completions.create({ ...request, stream: true });
  for await (const _ of stream) stream.controller.abort();
}

async function signal() {
  const stream = await client.chat.completions.create({ ...request, stream: true }, { signal: leave.signal });
  for await (const _ of stream) leave.abort();
}

async function whole() {
  process.once("SIGUSR2", () => leave.abort());
  await client.chat.completions.create(request, { signal: leave.signal }).catch(() => {});
}
