// One streamed question by openai-node: what it makes of the stream, as JSON.
//   NODE_PATH=.../node_modules node openai_node.mjs BASE_URL
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { OpenAI } = require('openai');
const client = new OpenAI({ baseURL: process.argv[2], apiKey: '-', maxRetries: 0 });
const told = { text: '', error: null };
try {
  const stream = await client.chat.completions.create({
    model: 'scripted',
    messages: [{ role: 'user', content: 'hello' }],
    stream: true,
  });
  for await (const chunk of stream) told.text += chunk.choices[0]?.delta?.content ?? '';
} catch (error) {
  told.error = String(error?.error?.code ?? error?.code ?? error);
}
console.log(JSON.stringify(told));
