// What a Node program does with OpenAI's client, unmodified: prints what it got, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: process.argv[4] }];
const wish = { model: "pocket", messages, temperature: 0, max_tokens: 32 };

async function nameOf(failing) {
  try {
    await failing;
    return null;
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
}

const plain = await client.chat.completions.create(wish);

let streamed = "";
const stream = await client.chat.completions.create({ ...wish, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";

const headers = { "X-Adapter-Id": "base" };
const base = await client.chat.completions.create(wish, { headers }).withResponse();
const response = await client.responses.create({
  model: "pirate", input: process.argv[4], temperature: 0, max_output_tokens: 32,
});
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const stopped = client.withOptions({ apiKey: process.argv[5] });
const stranger = client.withOptions({ apiKey: "wrong" });

console.log(JSON.stringify({
  plain: plain.choices[0].message.content,
  streamed,
  base: base.data.choices[0].message.content,
  baseLabel: base.response.headers.get("X-Adapter-Id"),
  response: response.output_text,
  models,
  forbidden: await nameOf(client.chat.completions.create({ ...wish, model: "formal" })),
  stranger: await nameOf(stranger.models.list()),
  stopped: await nameOf(stopped.chat.completions.create(wish)),
  senseless: await nameOf(client.chat.completions.create({ ...wish, temperature: "hot" })),
}));
