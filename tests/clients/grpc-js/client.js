// Drives the server with @grpc/grpc-js; see ../README.md for arguments and output.
'use strict';
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const [plainAddress, tlsAddress, certificateFile, protoFolder] = process.argv.slice(2);
const files = ['completion', 'tokenization', 'models', 'sessions'].map(name => `inference/v1/${name}.proto`);
const definition = loader.loadSync(files, { includeDirs: [protoFolder], keepCase: true, longs: String, enums: String, oneofs: true });
const v1 = grpc.loadPackageDefinition(definition).inference.v1;

// Only the fields looked at here; the numbers are those of the public definitions.
const known = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message HealthCheckRequest { string service = 1; }
  message HealthCheckResponse { int32 status = 1; }
  message ReflectionRequest { oneof message_request { string file_containing_symbol = 4; string list_services = 7; } }
  message FileDescriptorResponse { repeated bytes file_descriptor_proto = 1; }
  message ServiceResponse { string name = 1; }
  message ListServiceResponse { repeated ServiceResponse service = 1; }
  message ReflectionResponse { FileDescriptorResponse file_descriptor_response = 4; ListServiceResponse list_services_response = 6; }
`, { keepCase: true }).root;
const encode = type => value => Buffer.from(known.lookupType(type).encode(value).finish());
const decode = type => bytes => known.lookupType(type).decode(bytes);

const ids = (maxTokens, ...tokenIds) => ({ token_ids: { ids: tokenIds }, stopping: { max_tokens: maxTokens, ignore_eos: true } });
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
const expect = (condition, what) => { if (!condition) throw new Error(what); };
const expectCode = (error, code) => expect(error?.code === code, `expected status ${code}, got ${error ? `${error.code} ${error.details}` : 'success'}`);

function unary(call) {
  return new Promise(resolve => {
    let metadata = null, outcome = null;
    const started = call((error, value) => { outcome = { error, value }; });
    started.on('metadata', m => { metadata = m; });
    started.on('status', status => setImmediate(() => resolve({ ...outcome, metadata, status })));
  });
}

function stream(started, onData = () => {}) {
  return new Promise(resolve => {
    const messages = [];
    started.on('data', message => { messages.push(message); onData(message, messages.length); });
    started.on('error', error => resolve({ messages, error }));
    started.on('end', () => resolve({ messages, error: null }));
  });
}

function details(error) {
  const status = decode('Status')(error.metadata.get('grpc-status-details-bin')[0]);
  const of = name => {
    const any = status.details.find(d => d.type_url === `type.googleapis.com/google.rpc.${name}`);
    return any && decode(name)(any.value);
  };
  return { code: status.code, info: of('ErrorInfo'), badRequest: of('BadRequest') };
}

/** Every case gets clients of one transport; it throws what is wrong. */
const cases = {
  async unary({ completions }) {
    const { error, value } = await unary(done => completions.Complete(ids(20, 5, 6, 7), done));
    expect(!error, error);
    expect(value.token_ids.length === 20 && value.finished.reason === 'FINISH_REASON_LENGTH', JSON.stringify(value.finished));
    expect(value.started.prompt_tokens === 3 && value.started.sampling.seed !== undefined, JSON.stringify(value.started));
  },
  async stream({ completions }) {
    const { messages, error } = await stream(completions.Generate(ids(100, 5, 6, 7)));
    expect(!error, error);
    expect(messages.every((m, i) => Number(m.sequence ?? 0) === i), 'sequence numbers have gaps');
    expect(messages[0].event === 'started' && messages.at(-1).event === 'finished', 'first or last event is wrong');
    const tokens = messages.flatMap(m => m.delta?.token_ids ?? []);
    const { value } = await unary(done => completions.Complete(ids(100, 5, 6, 7), done));
    expect(JSON.stringify(tokens) === JSON.stringify(value.token_ids), 'the stream and the unary call differ');
    expect(messages.map(m => m.delta?.text ?? '').join('') === value.text, 'the texts differ');
  },
  async 'chat and tokenization'({ completions, tokenization }) {
    const chat = { messages: [{ role: 'ROLE_USER', content: [{ text: 'Hi 🙂' }] }], thinking: 'THINKING_MODE_OFF' };
    const rendered = await unary(done => tokenization.RenderChat({ chat }, done));
    expect(rendered.value.text === '<｜begin▁of▁sentence｜><｜User｜>Hi 🙂<｜Assistant｜></think>', rendered.value.text);
    const answer = await unary(done => completions.Complete({ chat, stopping: { max_tokens: 1 } }, done));
    expect(answer.value.started.prompt_tokens === rendered.value.token_count, 'token counts differ');
    const back = await unary(done => tokenization.Detokenize({ token_ids: rendered.value.token_ids }, done));
    expect(back.value.text === rendered.value.text, back.value.text);
    const again = await unary(done => tokenization.Tokenize({ text: rendered.value.text, include_pieces: true }, done));
    expect(JSON.stringify(again.value.token_ids) === JSON.stringify(rendered.value.token_ids), 'ids differ');
    expect(Buffer.concat(again.value.pieces).toString() === rendered.value.text, 'pieces differ');
  },
  async sessions({ completions, sessions, name }) {
    const id = `${name}-a`, count = 600, tokens = Array.from({ length: count }, (_, i) => 10 + i);
    const made = await unary(done => sessions.CreateSession({ session_id: id, content: { token_ids: { ids: tokens } } }, done));
    expect(!made.error && made.value.tokens === count && made.value.memory.tokens === count, JSON.stringify(made.error ?? made.value));
    const fork = await unary(done => sessions.ForkSession({ session_id: id, new_session_id: `${name}-b` }, done));
    expect(fork.value?.tokens === count, JSON.stringify(fork.error ?? fork.value));
    const whole = await unary(done => completions.Complete(ids(5, ...tokens, 7, 8), done));
    for (const session of [id, `${name}-b`]) {
      const { value, error } = await unary(done => completions.Complete({ ...ids(5, 7, 8), session_id: session }, done));
      expect(!error && JSON.stringify(value.token_ids) === JSON.stringify(whole.value.token_ids), error ?? 'a session answers otherwise than its tokens');
      expect(value.finished.usage.cached_tokens >= count, JSON.stringify(value.finished.usage));
    }
    const cut = await unary(done => sessions.TruncateSession({ session_id: id, tokens: 10 }, done));
    expect(cut.value?.tokens === 10, JSON.stringify(cut.error ?? cut.value));
    const save = await unary(done => sessions.SaveSession({ session_id: id }, done));
    expectCode(save.error, grpc.status.FAILED_PRECONDITION);
    for (const session of [id, `${name}-b`]) expect(!(await unary(done => sessions.DeleteSession({ session_id: session }, done))).error, 'delete');
    const gone = await unary(done => sessions.GetSession({ session_id: id }, done));
    expectCode(gone.error, grpc.status.NOT_FOUND);
    expect(details(gone.error).info.reason === 'SESSION_NOT_FOUND', 'no reason');
  },
  async 'model description'({ models }) {
    const { value } = await unary(done => models.GetModel({}, done));
    expect(value.context_tokens_max === 4096 && value.determinism === 'DETERMINISM_CLASS_ANY_SCHEDULE', JSON.stringify(value));
  },
  async deadline({ completions }) {
    const start = Date.now();
    const { messages, error } = await stream(completions.Generate(ids(4000, 5), { deadline: Date.now() + 500 }));
    expectCode(error, grpc.status.DEADLINE_EXCEEDED);
    expect(messages.length > 1 && Date.now() - start < 10000, `${messages.length} messages, ${Date.now() - start} ms`);
  },
  async 'unary deadline'({ completions }) {
    const { error } = await unary(done => completions.Complete(ids(4000, 5), { deadline: Date.now() + 300 }, done));
    expectCode(error, grpc.status.DEADLINE_EXCEEDED);
  },
  async cancel({ completions }) {
    const call = completions.Generate(ids(4000, 5));
    const { messages, error } = await stream(call, (_, count) => { if (count === 5) call.cancel(); });
    expectCode(error, grpc.status.CANCELLED);
    expect(messages.length >= 5 && messages.length < 1000, `${messages.length} messages`);
  },
  async 'oversized message'({ completions }) {
    const { error } = await unary(done => completions.Complete({ text: 'x'.repeat(3 << 20) }, done));
    expectCode(error, grpc.status.RESOURCE_EXHAUSTED);
    const after = await unary(done => completions.Complete(ids(1, 5), done));
    expect(!after.error, 'the connection did not survive');
  },
  async 'bad field'({ completions }) {
    const request = { ...ids(-1, 5), sampling: { temperature: NaN } };
    const { error } = await unary(done => completions.Complete(request, done));
    expectCode(error, grpc.status.INVALID_ARGUMENT);
    const { code, info, badRequest } = details(error);
    expect(code === 3 && info.reason === 'INVALID_FIELD' && info.domain === 'inference', JSON.stringify(info));
    const fields = badRequest.field_violations.map(v => v.field).join();
    expect(fields === 'sampling.temperature,stopping.max_tokens', fields);
  },
  async 'bad field in a stream'({ completions }) {
    const { messages, error } = await stream(completions.Generate({ token_ids: { ids: [99999] } }));
    expectCode(error, grpc.status.INVALID_ARGUMENT);
    expect(messages.length === 0 && details(error).badRequest.field_violations[0].field === 'token_ids.ids[0]', 'wrong violation');
  },
  async 'unreadable message'({ raw }) {
    const identity = x => x;
    const { error } = await unary(done => raw.makeUnaryRequest('/inference.v1.Completions/Complete', identity, identity, Buffer.from([255, 255]), done));
    expectCode(error, grpc.status.INVALID_ARGUMENT);
    expect(details(error).info.reason === 'UNREADABLE_MESSAGE', details(error).info.reason);
  },
  async metadata({ completions }) {
    const metadata = new grpc.Metadata();
    metadata.set('x-request-id', 'from-js');
    metadata.set('x-any-bin', Buffer.from([0, 255, 7]));
    const answer = await unary(done => completions.Complete(ids(1, 5), metadata, done));
    expect(answer.metadata.get('x-request-id')[0] === 'from-js', `got ${answer.metadata.get('x-request-id')}`);
    expect(answer.value.started.request_id === 'from-js', answer.value.started.request_id);
  },
  async 'unknown method'({ raw }) {
    const identity = x => x;
    for (const path of ['/inference.v1.Completions/Nope', '/nope.Nope/Nope']) {
      const { error } = await unary(done => raw.makeUnaryRequest(path, identity, identity, Buffer.alloc(0), done));
      expectCode(error, grpc.status.UNIMPLEMENTED);
    }
  },
  async 'compressed request'({ compressed }) {
    const { error, value } = await unary(done => compressed.Complete({ text: 'a '.repeat(500), stopping: { max_tokens: 1 } }, done));
    expect(!error && value.token_ids.length === 1, error?.details);
  },
  async health({ raw }) {
    const check = service => unary(done => raw.makeUnaryRequest(
      '/grpc.health.v1.Health/Check', encode('HealthCheckRequest'), decode('HealthCheckResponse'), { service }, done));
    for (const service of ['', 'inference.v1.Completions']) {
      const { error, value } = await check(service);
      expect(!error && value.status === 1, error?.details ?? `status ${value.status}`);
    }
    expectCode((await check('nope')).error, grpc.status.NOT_FOUND);
  },
  async reflection({ raw }) {
    for (const version of ['v1', 'v1alpha']) {
      const call = raw.makeBidiStreamRequest(
        `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`, encode('ReflectionRequest'), decode('ReflectionResponse'));
      const answers = stream(call, (_, count) => { if (count === 2) call.end(); });
      call.write({ list_services: '' });
      call.write({ file_containing_symbol: 'inference.v1.Completions' });
      const { messages, error } = await answers;
      expect(!error, error?.details);
      const names = messages[0].list_services_response.service.map(s => s.name);
      for (const name of ['inference.v1.Completions', 'inference.v1.Models', 'inference.v1.Tokenization', 'grpc.health.v1.Health'])
        expect(names.includes(name), `${name} is not in ${names}`);
      expect(messages[1].file_descriptor_response.file_descriptor_proto.length > 0, 'no file descriptor');
    }
  },
};

/** Both transports at once, last: watches see the drain, a stream ends well, a new call is refused. */
async function drain(transports) {
  const watches = transports.map(t => {
    const seen = [];
    const call = t.raw.makeServerStreamRequest(
      '/grpc.health.v1.Health/Watch', encode('HealthCheckRequest'), decode('HealthCheckResponse'), { service: '' });
    return { seen, ended: stream(call, message => seen.push(message.status)) };
  });
  const running = transports.map(t => {
    let begin;
    const begun = new Promise(resolve => { begin = resolve; });
    return { begun, ended: stream(t.completions.Generate(ids(150, 5)), (_, count) => { if (count === 3) begin(); }) };
  });
  await Promise.all(running.map(r => r.begun));
  while (watches.some(w => w.seen.length === 0)) await sleep(5);
  console.log('drain');
  while (watches.some(w => w.seen.length < 2)) await sleep(5);
  const refusals = await Promise.all(transports.map(t => unary(done => t.completions.Complete(ids(1, 5), done))));
  for (const [i, t] of transports.entries()) {
    await report(t.name, 'drain', async () => {
      const refused = refusals[i];
      expectCode(refused.error, grpc.status.UNAVAILABLE);
      expect(details(refused.error).info.reason === 'DRAINING', details(refused.error).info.reason);
      const { messages, error } = await running[i].ended;
      expect(!error && messages.at(-1).finished?.reason === 'FINISH_REASON_LENGTH', error?.details ?? 'cut short');
    });
    await report(t.name, 'health watch', async () => {
      const { error } = await watches[i].ended;
      expectCode(error, grpc.status.UNAVAILABLE);
      expect(watches[i].seen.join() === '1,2', `saw ${watches[i].seen}`);
    });
  }
}

async function report(transport, name, run) {
  try {
    await run();
    console.log(`ok ${transport} ${name}`);
  } catch (error) {
    console.log(`FAIL ${transport} ${name}: ${error?.message ?? error}`);
  }
}

function connect(name, address, credentials) {
  return {
    name,
    completions: new v1.Completions(address, credentials),
    compressed: new v1.Completions(address, credentials, { 'grpc.default_compression_algorithm': 2 }),
    tokenization: new v1.Tokenization(address, credentials),
    models: new v1.Models(address, credentials),
    sessions: new v1.Sessions(address, credentials),
    raw: new grpc.Client(address, credentials),
  };
}

(async () => {
  const transports = [
    connect('h2c', plainAddress, grpc.credentials.createInsecure()),
    connect('tls', tlsAddress, grpc.credentials.createSsl(fs.readFileSync(certificateFile))),
  ];
  for (const transport of transports)
    for (const [name, run] of Object.entries(cases)) await report(transport.name, name, () => run(transport));
  await drain(transports);
  process.exit(0);
})();
