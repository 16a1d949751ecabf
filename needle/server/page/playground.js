'use strict';
// The page: asks models and shows what they answer. Talks to the same routes as any other client.
import {element, events, fetchJson, get, megabytes, post, postJson, RequestError, say, setKey, upload} from './api.js';
import {currentTools, onTools, showToolProblem, startEditor} from './editor.js';
import {startFinetune} from './finetune.js';
import {why} from './why.js';

const QUERIES = ['wake me up at 7 am', 'play Yesterday by the Beatles', 'turn on the lights in the kitchen', 'how are you?'];
let status = null;  // of /playground/status; null where this server does not let us
let shownView = 'cards';
let running = null;  // AbortController
let results = [];  // on the page

const compared = () => get('compare').checked && get('other-model').value !== '';

// ---- what a model answered -----------------------------------------------------------------------------------------

class Result {
  constructor(model) {
    this.model = model;
    this.calls = [];
    this.cards = element('div', {class: 'cards', 'aria-live': 'polite'});
    this.json = element('pre', {tabindex: '0', 'aria-label': `Answer of ${model} as JSON`});
    this.why = element('div', {});
    this.times = element('p', {class: 'state'}, '\u00a0');
    this.node = element('section', {class: 'result', 'aria-label': `Answer of ${model}`},
      element('h3', {}, model), this.times, this.cards, this.json, this.why);
    this.setView();
  }

  setView() {
    this.cards.hidden = shownView !== 'cards';
    this.json.hidden = shownView !== 'json';
    this.why.hidden = shownView !== 'why';
  }

  addCall(call) {
    this.calls.push(call);
    const list = element('dl');
    for (const [name, value] of Object.entries(JSON.parse(call.arguments))) {
      list.append(element('dt', {}, name), element('dd', {}, typeof value === 'string' ? value : JSON.stringify(value)));
    }
    this.cards.append(element('article', {class: 'card'}, element('h4', {}, call.name), list));
  }

  // The whole answer: `last` is the chunk with usage and the server's own field.
  finish(query, last, seconds, ranking) {
    if (this.calls.length === 0) this.cards.append(element('p', {class: 'card empty'}, 'No tool was called.'));
    const extra = last.needle;
    const model = extra.prefill_ms + extra.decode_ms;
    const rate = last.usage.completion_tokens / extra.decode_ms * 1000;
    this.times.textContent = `${(1000 * seconds).toFixed(0)} ms \u00b7 model ${model.toFixed(1)} ms \u00b7 ` +
      `${last.usage.prompt_tokens} + ${last.usage.completion_tokens} tokens` + (Number.isFinite(rate) ? ` \u00b7 ${rate.toFixed(0)} tokens/s` : '');
    const calls = this.calls.map((call) => ({name: call.name, arguments: JSON.parse(call.arguments)}));
    this.json.textContent = JSON.stringify({calls, usage: last.usage, needle: {...extra, trace: undefined, confidence: undefined}}, null, 2);
    this.why.replaceChildren(why(query, extra, ranking));
    this.cards.append(...extra.problems.map((problem) => element('p', {class: 'error'}, `${problem.path}: ${problem.message}`)));
  }

  fail(error) {
    this.cards.replaceChildren(element('p', {class: 'card error', role: 'alert'}, error.message));
  }

  // Equal answers have equal text.
  answer() { return JSON.stringify(this.calls.map((call) => [call.name, JSON.parse(call.arguments)])); }
}

async function ask(result, query, tools, signal) {
  const start = performance.now();
  const reply = await post('v1/chat/completions', {
    model: result.model, messages: [{role: 'user', content: query}], tools, stream: true,
    stream_options: {include_usage: true}, needle: {confidence: true, trace: true}}, signal);
  let last = null;
  for await (const chunk of events(reply)) {
    if (chunk.error) throw new RequestError(500, chunk.error);
    for (const call of chunk.choices[0]?.delta.tool_calls ?? []) result.addCall(call.function);
    last = chunk;
  }
  const seconds = (performance.now() - start) / 1000;
  let ranking = null;
  if (tools.length > 0) {
    try {
      ranking = (await (await post('v1/rank', {model: result.model, query, tools}, signal)).json()).data;
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      ranking = error;  // a model without a retrieval head
    }
  }
  result.finish(query, last, seconds, ranking);
}

async function run() {
  const tools = currentTools();
  const query = get('query').value.trim();
  if (tools === null) return say('The tools are not valid yet: see the line marked in red.', true);
  if (query === '') return get('query').focus();
  running?.abort();
  const controller = running = new AbortController();
  results = [new Result(get('model').value)];
  if (compared()) results.push(new Result(get('other-model').value));
  get('run').textContent = 'Stop';
  get('verdict').textContent = '';
  get('results').replaceChildren(...results.map((result) => result.node));
  get('results').classList.toggle('two', results.length === 2);
  say('');
  let failed = false;
  for (const result of results) {  // one after the other, so that their times can be compared
    try {
      await ask(result, query, tools, controller.signal);
    } catch (error) {
      if (error.name === 'AbortError') break;
      failed = true;
      result.fail(error);
      if (error.param?.startsWith('tools')) showToolProblem(error.param, error.message);
    }
  }
  if (running !== controller) return;
  running = null;
  get('run').textContent = 'Run';
  if (results.length === 2 && !failed) get('verdict').textContent = results[0].answer() === results[1].answer() ? 'Same answer' : 'Different answers';
}

// ---- models --------------------------------------------------------------------------------------------------------

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.length === 0) select.append(new Option('none', ''));
  if (names.includes(chosen)) select.value = chosen;
}

export async function loadModels(chosen) {
  const models = await fetchJson('v1/models');
  const names = models.data.map((model) => model.id);
  fill(get('model'), names, chosen ?? (get('model').value || localStorage.getItem('model')));
  fill(get('other-model'), names, get('other-model').value || names.find((name) => name !== get('model').value));
  get('compare').disabled = names.length < 2;
  const size = models.data.find((model) => model.id === get('model').value)?.bytes;
  get('model').title = size ? megabytes(size) : '';
  if (names.length === 0) say(status ? 'There is no model yet: make one on the page Finetune, or add a .needle file.' : models.needle?.hint ?? 'There is no model yet.');
}

async function addModel(file) {
  if (file.size > status.model_bytes) return say(`${file.name} has ${megabytes(file.size)}; at most ${megabytes(status.model_bytes)} are allowed.`, true);
  try {
    const id = await upload('model', file, status.piece_bytes, (share) => say(`Sending ${file.name}: ${(100 * share).toFixed(0)} %`));
    const name = file.name.replace(/\.needle$/, '').replace(/[^A-Za-z0-9._-]/g, '_').replace(/^[^A-Za-z0-9]+/, '').slice(0, 64) || 'model';
    let added;
    try {
      added = await postJson('playground/models', {upload: id, name});
    } catch (error) {
      if (error.code !== 'model_exists' || !confirm(`${error.message}. Replace it?`)) throw error;
      added = await postJson('playground/models', {upload: id, name, replace: true});
    }
    await loadModels(added.id);
    say(`${added.id} is loaded.`);
  } catch (error) {
    say(error.message, true);
  }
}

// For the other page: asks with these models.
export async function tryModels(model, other) {
  await loadModels(model);
  if (other && [...get('other-model').options].some((option) => option.value === other)) {
    get('other-model').value = other;
    get('compare').checked = true;
  }
  syncCompare();
  showPage('try');
  get('query').focus();
}

// ---- the page ------------------------------------------------------------------------------------------------------

export function showPage(name) {
  for (const page of ['try', 'finetune']) {
    get(`page-${page}`).hidden = page !== name;
    get(`tab-${page}`).setAttribute('aria-selected', String(page === name));
    get(`tab-${page}`).tabIndex = page === name ? 0 : -1;
  }
  history.replaceState(null, '', name === 'try' ? '#' : `#${name}`);
}

function showView(name) {
  shownView = name;
  for (const button of get('views').children) button.setAttribute('aria-pressed', String(button.dataset.view === name));
  for (const result of results) result.setView();
}

function syncCompare() { get('other-model').disabled = !get('compare').checked; }

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem('theme', theme);
}

function startPage() {
  get('form').addEventListener('submit', (submit) => {
    submit.preventDefault();
    if (running) {
      running.abort();
      running = null;
      get('run').textContent = 'Run';
    } else {
      run();
    }
  });
  for (const query of QUERIES) {
    get('queries').append(element('button', {type: 'button', class: 'chip', onclick: () => { get('query').value = query; run(); }}, query));
  }
  for (const button of get('views').children) button.addEventListener('click', () => showView(button.dataset.view));
  get('model').addEventListener('change', () => localStorage.setItem('model', get('model').value));
  get('compare').addEventListener('change', syncCompare);
  get('upload-model').addEventListener('change', (change) => { if (change.target.files[0]) addModel(change.target.files[0]); change.target.value = ''; });
  get('key').addEventListener('change', () => { setKey(get('key').value); start(); });
  get('theme').addEventListener('change', () => setTheme(get('theme').value));
  get('theme').value = localStorage.getItem('theme') ?? 'auto';
  setTheme(get('theme').value);
  const tabs = [get('tab-try'), get('tab-finetune')];
  tabs.forEach((tab, at) => {
    tab.addEventListener('click', () => showPage(tab.id.slice('tab-'.length)));
    tab.addEventListener('keydown', (key) => {
      if (key.key !== 'ArrowRight' && key.key !== 'ArrowLeft') return;
      tabs[1 - at].click();
      tabs[1 - at].focus();
    });
  });
  document.addEventListener('keydown', (key) => {
    if (key.key === 'Enter' && (key.ctrlKey || key.metaKey) && !get('page-try').hidden) {
      key.preventDefault();
      run();
    }
  });
  showView('cards');
  syncCompare();
  showPage(location.hash === '#finetune' ? 'finetune' : 'try');
}

async function start() {
  try {
    try {
      status = await fetchJson('playground/status');
    } catch (error) {
      if (error.status !== 403 && error.status !== 404) throw error;
      get('tab-finetune').hidden = get('add-model').hidden = true;  // only for the machine that serves
      showPage('try');
    }
    await loadModels();
    if (status) await startFinetune(status, {tryModels, loadModels, onTools});
  } catch (error) {
    say(error.message, true);
  }
}

startEditor();
startPage();
start();
