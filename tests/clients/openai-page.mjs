// openai-node as a page uses it.
import OpenAI from "/modules/openai/index.mjs";

const request = (question) => ({ model: "demo", messages: [{ role: "user", content: question }] });
const limits = { headers: { "X-Timeout-First-Token": "20", "X-On-Disconnect": "cancel" } };

export async function ask(relay, way, question) {
  let text = "";
  try {
    const asked = ways[way](clientOf(relay).chat.completions, request(question), (said) => (text += said));
    const { headers } = await asked;
    return { text, streamId: headers.get("x-stream-id"), requestId: headers.get("x-request-id") };
  } catch (error) {
    return { text, class: error.constructor.name, code: error.code, status: error.status };
  }
}

export async function leave(relay) {
  const stream = await clientOf(relay).chat.completions.create({ ...request("plain"), stream: true });
  for await (const { choices } of stream) return choices[0].delta.content;
}

const ways = {
  async stream(completions, body, say) {
    const { data, response } = await completions.create({ ...body, stream: true }, limits).withResponse();
    for await (const { choices } of data) say(choices[0].delta.content ?? "");
    return response;
  },
  async whole(completions, body, say) {
    const { data, response } = await completions.create(body, limits).withResponse();
    say(data.choices[0].message.content);
    return response;
  },
  async helper(completions, body, say) {
    const stream = completions.stream(body, limits);
    stream.on("content", say);
    await stream.finalChatCompletion();
    return { headers: new Headers() }; // it does not show the response's
  },
};

function clientOf(relay) {
  return new OpenAI({ baseURL: `${relay}/v1`, apiKey: "any", maxRetries: 0, dangerouslyAllowBrowser: true });
}
