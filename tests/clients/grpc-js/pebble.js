// The embedded model through @grpc/grpc-js: its own examples word for word, sixteen streams of which a third is cancelled midway and the
// others say what they say alone, and sixteen streams that a drain must not cut. Prints a line per case, as client.js does.
// Arguments: address of the plain listener, address of the HTTP listener, folder of the protos, examples.json. Prints `drain` when the server is to be stopped.
'use strict';
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, httpAddress, protoFolder, examplesFile] = process.argv.slice(2);
const definition = loader.loadSync('inference/v1/completion.proto', { includeDirs: [protoFolder], keepCase: true, longs: String, enums: String, oneofs: true });
const completions = new (grpc.loadPackageDefinition(definition).inference.v1.Completions)(address, grpc.credentials.createInsecure());
const examples = JSON.parse(fs.readFileSync(examplesFile, 'utf8'));
const expect = (condition, what) => { if (!condition) throw new Error(what); };

function complete(request) {
  return new Promise((resolve, reject) => completions.Complete(request, (error, value) => error ? reject(error) : resolve(value)));
}

/** Reads a stream to its end; with cancelAfter, cancels it after so many deltas. */
function stream(request, cancelAfter = Infinity, onFirst = () => {}) {
  return new Promise(resolve => {
    const call = completions.Generate(request);
    const tokens = [];
    let deltas = 0, finished = null;
    call.on('data', event => {
      if (event.started) onFirst();
      if (event.delta) { tokens.push(...event.delta.token_ids); if (++deltas === cancelAfter) call.cancel(); }
      if (event.finished) finished = event.finished;
    });
    call.on('error', error => resolve({ tokens, finished, error }));
    call.on('end', () => resolve({ tokens, finished, error: null }));
  });
}

/** An example as a client would send it. */
function chat(example) {
  const text = content => content === undefined || content === null || content === '' ? [] : [{ text: content }];
  return {
    chat: {
      messages: example.messages.map(m => ({
        role: 'ROLE_' + m.role.toUpperCase(),
        content: text(m.content),
        reasoning: m.reasoning_content,
        tool_calls: (m.tool_calls ?? []).map(c => ({ id: c.id, name: c.function.name, arguments: c.function.arguments })),
        tool_call_id: m.tool_call_id,
      })),
      tools: (example.messages.find(m => m.tools)?.tools ?? []).map(t => ({
        name: t.function.name, description: t.function.description ?? '', parameters: t.function.parameters ? JSON.stringify(t.function.parameters) : '',
      })),
      thinking: example.thinking_mode === 'thinking' ? 'THINKING_MODE_ON' : 'THINKING_MODE_OFF',
    },
  };
}

const long = i => ({
  token_ids: { ids: examples[i].prompt_ids }, stopping: { max_tokens: 150, ignore_eos: true },
  sampling: i % 2 === 0 ? { temperature: 0 } : { temperature: 1, top_p: 0.95, seed: i },
});
const sixteen = Array.from({ length: 16 }, (_, i) => i);

const cases = {
  async 'examples'() {
    const sure = examples.filter(e => e.smallest_gap > 0.01);
    expect(sure.length > 10, `only ${sure.length} examples have one right answer`);
    await Promise.all(sure.map(async example => {
      // Where the tools were described in a form that this client cannot spell, the prompt is sent as it was rendered.
      const request = example.messages.some(m => m.tools) ? { text: example.prompt } : chat(example);
      const answer = await complete({ ...request, output: { special_tokens: true } });
      expect(answer.text + '<｜end▁of▁sentence｜>' === example.completion, `${JSON.stringify(example.messages)}: ${answer.text}`);
      expect(answer.started.prompt_tokens === example.prompt_ids.length, `${answer.started.prompt_tokens} prompt tokens`);
    }));
  },
  async 'sixteen streams, a third cancelled'() {
    const alone = [];
    for (const i of sixteen) alone.push(await stream(long(i)));
    const together = await Promise.all(sixteen.map(i => stream(long(i), i % 3 === 1 ? 20 + i : Infinity)));
    for (const i of sixteen) {
      const { tokens, finished, error } = together[i];
      if (i % 3 === 1) {
        expect(error?.code === grpc.status.CANCELLED, `stream ${i}: ${error ?? 'not cancelled'}`);
        expect(JSON.stringify(tokens) === JSON.stringify(alone[i].tokens.slice(0, tokens.length)), `stream ${i} said something else before it was cancelled`);
      } else {
        expect(!error && finished.reason === 'FINISH_REASON_LENGTH', `stream ${i}: ${error ?? finished.reason}`);
        expect(tokens.length === 150 && JSON.stringify(tokens) === JSON.stringify(alone[i].tokens), `stream ${i} differs from its run alone`);
      }
    }
  },
  async 'no page is held afterwards'() {
    for (let attempt = 0; ; attempt++) {
      // The page shows the engine's last step; the last cancellation may need one more.
      const page = await (await fetch(`http://${httpAddress}/metrics`)).text();
      const used = page.split('\n').filter(line => line.startsWith('inference_kv_pages_used{')).map(line => Number(line.slice(line.indexOf('}') + 1).trim().split(' ')[0]));
      expect(used.length > 0, page);
      if (used.every(n => n === 0)) return;
      expect(attempt < 100, `pages are still held: ${used}`);
      await new Promise(resolve => setTimeout(resolve, 100));
    }
  },
  async 'sixteen streams through a drain'() {
    const alone = await Promise.all(sixteen.map(i => stream(long(i))));
    let started = 0;
    const running = sixteen.map(i => stream(long(i), Infinity, () => { if (++started === 16) console.log('drain'); }));
    for (const [i, { tokens, error }] of (await Promise.all(running)).entries())
      expect(!error && JSON.stringify(tokens) === JSON.stringify(alone[i].tokens), `stream ${i}: ${error ?? 'differs'}`);
  },
};

(async () => {
  let failed = 0;
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run();
      console.log(`ok ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAIL ${name}: ${error.stack ?? error}`);
    }
  }
  completions.close();
  process.exitCode = failed;
})();
