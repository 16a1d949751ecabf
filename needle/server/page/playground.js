'use strict';
// Talks to the same routes as any other client; nothing is loaded from elsewhere.
const get = (id) => document.getElementById(id);
const EXAMPLE = [
  {name: 'set_alarm', description: 'Set an alarm',
   parameters: {type: 'object', properties: {time: {type: 'string', description: 'time of day'}}, required: ['time']}},
  {name: 'play_music', description: 'Play a song or an artist',
   parameters: {type: 'object', properties: {song: {type: 'string'}, artist: {type: 'string'}}}},
];

function element(name, text, ...children) {
  const node = document.createElement(name);
  if (text !== null) node.textContent = text;
  node.append(...children);
  return node;
}

// Line and column of a JSON error, in Chromium's and in Firefox's words.
function jsonError(text, error) {
  const position = /position (\d+)/.exec(error.message);
  const line = /line (\d+) column (\d+)/.exec(error.message);
  if (line) return `line ${line[1]}, column ${line[2]}: ${error.message}`;
  const before = text.slice(0, position ? Number(position[1]) : text.length).split('\n');
  return `line ${before.length}, column ${before.at(-1).length + 1}: ${error.message}`;
}

function readTools() {
  const text = get('tools').value.trim();
  const state = get('tools-state');
  try {
    const parsed = text === '' ? [] : JSON.parse(get('tools').value);
    const tools = Array.isArray(parsed) ? parsed : parsed.tools;
    if (!Array.isArray(tools)) throw new Error('expected a list of tools');
    state.textContent = tools.length === 1 ? '1 tool' : `${tools.length} tools`;
    state.classList.remove('bad');
    localStorage.setItem('tools', get('tools').value);
    return tools;
  } catch (error) {
    state.textContent = error instanceof SyntaxError ? jsonError(get('tools').value, error) : error.message;
    state.classList.add('bad');
    return null;
  }
}

async function ask(path, body) {
  const headers = {'Content-Type': 'application/json'};
  if (get('key').value) headers.Authorization = `Bearer ${get('key').value}`;
  const reply = await fetch(path, body ? {method: 'POST', headers, body: JSON.stringify(body)} : {headers});
  if (reply.status === 401) get('key-field').hidden = false;
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  return reply;
}

// The chunks of a server-sent stream, one object each.
async function* events(reply) {
  let rest = '';
  for await (const text of reply.body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      if (part !== 'data: [DONE]') yield JSON.parse(part.slice('data: '.length));
    }
  }
}

function showCall(call) {
  const list = element('dl', null);
  for (const [name, value] of Object.entries(JSON.parse(call.arguments))) {
    list.append(element('dt', name), element('dd', typeof value === 'string' ? value : JSON.stringify(value)));
  }
  const card = element('article', null, element('h3', call.name), list);
  card.className = 'card';
  get('calls').append(card);
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

// The query with the bytes of [begin, end) marked: spans count UTF-8 bytes.
function marked(query, span) {
  const bytes = new TextEncoder().encode(query);
  const text = (begin, end) => new TextDecoder().decode(bytes.slice(begin, end));
  return element('span', null, text(0, span[0]), element('mark', text(span[0], span[1])), text(span[1]));
}

function showWhy(query, extra) {
  const body = get('why-body');
  body.replaceChildren();
  if (!extra.confidence) return;
  body.append(element('p', `Answer ${percent(extra.confidence.probability)}, no call ${percent(extra.confidence.no_call)}`));
  for (const call of extra.confidence.calls) {
    body.append(element('p', `${call.name}: ${percent(call.probability)}`));
    for (const argument of call.arguments) {
      const line = element('p', `${argument.name}: ${percent(argument.probability)} `);
      line.append(argument.query_span ? marked(query, argument.query_span) : 'not in the query');
      body.append(line);
    }
  }
  for (const problem of extra.problems) body.append(element('p', `${problem.path}: ${problem.message}`));
  const table = element('table', null, element('tr', null, ...['token', 'how', 'probability', 'masked', 'others'].map((name) => element('th', name))));
  for (const step of extra.trace ?? []) {
    const others = step.alternatives.map((other) => `${other.piece} ${percent(other.probability)}${other.allowed ? '' : ' (masked)'}`);
    table.append(element('tr', null, element('td', step.piece), element('td', step.kind), element('td', percent(step.probability)),
                         element('td', step.outside === undefined ? '' : percent(step.outside)), element('td', others.join(', '))));
  }
  body.append(table);
}

async function run() {
  const tools = readTools();
  const query = get('query').value;
  if (tools === null) return;
  get('run').disabled = true;
  get('error').textContent = '';
  get('calls').replaceChildren();
  const start = performance.now();
  try {
    const reply = await ask('v1/chat/completions', {
      model: get('model').value, messages: [{role: 'user', content: query}], tools, stream: true,
      stream_options: {include_usage: true}, needle: {confidence: true, trace: get('why').open}});
    const chunks = [];
    for await (const chunk of events(reply)) {
      if (chunk.error) throw new Error(chunk.error.message);
      chunks.push(chunk);
      for (const call of chunk.choices[0]?.delta.tool_calls ?? []) showCall(call.function);
    }
    const last = chunks.at(-1);
    if (get('calls').childElementCount === 0) get('calls').append(element('p', 'No tool was called.'));
    const rate = last.usage.completion_tokens / last.needle.decode_ms * 1000;
    get('times').textContent = `${(performance.now() - start).toFixed(0)} ms, of which model ` +
      `${(last.needle.prefill_ms + last.needle.decode_ms).toFixed(1)} ms · ${last.usage.prompt_tokens} + ${last.usage.completion_tokens} tokens` +
      (Number.isFinite(rate) ? ` · ${rate.toFixed(0)} tokens/s` : '');
    get('json').textContent = JSON.stringify(chunks, null, 1);
    showWhy(query, last.needle);
  } catch (error) {
    get('error').textContent = error.message;
  }
  get('run').disabled = false;
}

async function rank() {
  const tools = readTools();
  if (tools === null) return;
  get('error').textContent = '';
  try {
    const reply = await (await ask('v1/rank', {model: get('model').value, query: get('query').value, tools})).json();
    get('calls').replaceChildren(element('ol', null, ...reply.data.map((tool) => element('li', `${tool.name} ${tool.score.toFixed(3)}`))));
    get('json').textContent = JSON.stringify(reply, null, 1);
  } catch (error) {
    get('error').textContent = error.message;
  }
}

async function loadModels() {
  try {
    const models = await (await ask('v1/models')).json();
    get('model').replaceChildren(...models.data.map((model) => element('option', model.id)));
    get('error').textContent = models.needle?.hint ?? '';
  } catch (error) {
    get('error').textContent = error.message;
  }
}

get('tools').value = localStorage.getItem('tools') ?? JSON.stringify(EXAMPLE, null, 2);
get('tools').addEventListener('input', readTools);
get('example').addEventListener('click', () => { get('tools').value = JSON.stringify(EXAMPLE, null, 2); readTools(); });
get('upload').addEventListener('change', async (change) => { get('tools').value = await change.target.files[0].text(); readTools(); });
get('form').addEventListener('submit', (submit) => { submit.preventDefault(); run(); });
get('rank').addEventListener('click', rank);
get('key').addEventListener('change', loadModels);
get('why').addEventListener('toggle', () => { if (get('why').open && get('calls').childElementCount > 0) run(); });
document.addEventListener('keydown', (key) => { if (key.key === 'Enter' && (key.ctrlKey || key.metaKey)) { key.preventDefault(); run(); } });
readTools();
loadModels();
