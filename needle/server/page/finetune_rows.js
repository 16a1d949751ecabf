// Rows to train on: where they come from, what is wrong with them, what they look like.
import {element, fetchJson, postJson, request, say, upload} from './api.js';
import {currentToolList, currentTools} from './editor.js';

export const field = (label, control) => element('label', {}, label, control);
export const number = (name, value, min, max) => element('input', {type: 'number', name, value, min, max, required: true});

function choice(value, checked, text, ...inside) {
  const radio = element('input', {type: 'radio', name: 'kind', value, checked});
  return [element('label', {class: 'choice'}, radio, ' ', text), element('div', {class: 'fields', 'data-kind': value, hidden: !checked}, ...inside)];
}

// The form that begins a finetuning; calls `made` with the new job.
export function newJobForm(status, made) {
  const tools = element('p', {class: 'hint'});
  const submit = element('button', {type: 'submit', class: 'main'}, 'Make rows');
  const state = element('p', {class: 'state', role: 'status'});
  const form = element('form', {},
    element('h2', {}, 'New finetuning'),
    element('p', {}, 'A small model learns your tools from rows: a request, and the calls that answer it.'),
    element('div', {class: 'fields'}, field('Name of the model', element('input', {name: 'name', value: 'mine', required: true, maxlength: 64, pattern: '[A-Za-z0-9][A-Za-z0-9._\\-]*', title: 'letters, digits, . _ -'}))),
    element('fieldset', {}, element('legend', {}, 'Rows'),
      ...choice('synth', true, 'Made from the tools, offline', field('Rows', number('count', 1000, 1, status.max_rows)), field('Seed', number('seed', 42, 0, 1e9))),
      ...choice('endpoint', false, 'Written by a large model that you have access to',
        field('Address (OpenAI-compatible)', element('input', {name: 'url', type: 'url', placeholder: 'https://api.example.org/v1', size: 30})),
        field('Its model', element('input', {name: 'endpoint-model', size: 16})),
        field('Key, kept in memory only', element('input', {name: 'key', type: 'password', autocomplete: 'off', size: 16})),
        field('Rows', number('endpoint-count', 200, 1, status.max_rows))),
      ...choice('upload', false, 'A file of rows (.jsonl, also gzip)', field('File', element('input', {name: 'file', type: 'file', accept: '.jsonl,.json,.gz,.txt'}))),
      tools),
    element('div', {class: 'bar'}, submit), state);
  const showTools = () => {
    const names = currentToolList().map((tool) => tool.name);
    tools.textContent = currentTools() === null ? 'The tools on the first page are not valid yet.' : `Tools of the first page: ${names.join(', ') || 'none'}.`;
  };
  const kind = () => form.elements.kind.value;
  form.addEventListener('change', () => {
    for (const part of form.querySelectorAll('[data-kind]')) part.hidden = part.dataset.kind !== kind();
    tools.hidden = kind() === 'upload';
    submit.textContent = kind() === 'upload' ? 'Take these rows' : 'Make rows';
  });
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    submit.disabled = true;
    state.classList.remove('bad');
    state.textContent = kind() === 'endpoint' ? 'Asking\u2026' : 'Making and checking rows\u2026';
    try {
      made(await createJob(form.elements, kind(), status, (text) => { state.textContent = text; }));
    } catch (error) {
      state.textContent = error.message;
      state.classList.add('bad');
    }
    submit.disabled = false;
  });
  showTools();
  return {node: form, showTools};
}

async function createJob(fields, kind, status, progress) {
  const body = {name: fields.name.value, source: {kind}};
  if (kind === 'upload') {
    const file = fields.file.files[0];
    if (!file) throw new Error('Choose a file first.');
    if (file.size > status.rows_bytes) throw new Error(`${file.name} is longer than the ${status.rows_bytes} bytes allowed.`);
    body.source.upload = await upload('rows', file, status.piece_bytes, (share) => progress(`Sending ${file.name}: ${(100 * share).toFixed(0)} %`));
    return postJson('playground/jobs', body);
  }
  if (currentTools() === null) throw new Error('The tools on the first page are not valid: mend them there.');
  body.tools = currentTools();
  if (kind === 'synth') Object.assign(body.source, {count: Number(fields.count.value), seed: Number(fields.seed.value)});
  else Object.assign(body.source, {count: Number(fields['endpoint-count'].value), url: fields.url.value, model: fields['endpoint-model'].value, key: fields.key.value});
  return postJson('playground/jobs', body);
}

const FINDINGS = {bad_row: 'lines that are no row', bad_tools: 'rows whose tools are wrong', bad_answers: 'rows whose answers are wrong',
  invalid_call: 'calls that do not fit their tool', ungrounded: 'values that are not in the query', duplicate: 'repetitions',
  conflict: 'contradictions', too_long: 'rows that are too long'};

export function checkSummary(check) {
  if (!check) return element('p', {});
  const problems = Object.entries(check.counts).filter(([, count]) => count > 0).map(([kind, count]) => `${count} ${FINDINGS[kind] ?? kind}`);
  const tools = Object.entries(check.tools).map(([tool, count]) => `${tool} ${count}`).join(', ');
  const node = element('div', {},
    element('p', {}, element('strong', {class: check.ok ? 'good' : 'bad'}, check.ok ? 'Checked: good to train on. ' : 'Checked: not fit to train on. '),
      `${check.rows} rows, ${check.calls} calls, ${check.rows_without_call} rows without a call${problems.length ? `; ${problems.join(', ')}` : ''}.`),
    element('p', {class: 'hint'}, `First calls: ${tools}.${check.few_examples.length ? ` Few examples of: ${check.few_examples.join(', ')}.` : ''}`));
  if (check.findings.length > 0) {
    node.append(element('details', {open: !check.ok}, element('summary', {}, 'What was found'),
      element('ul', {class: 'hint'}, ...check.findings.map((finding) => element('li', {}, `line ${finding.line}: ${finding.message}`)))));
  }
  return node;
}

const callText = (call) => `${call.name}(${Object.entries(call.arguments ?? {}).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(', ')})`;

// The rows of a job, a page at a time.
export function rowsTable(job) {
  const body = element('tbody');
  const place = element('span', {class: 'hint', role: 'status'});
  const count = job.check?.rows ?? 0;
  let first = 0;
  const buttons = ['Earlier', 'Later'].map((text, later) => element('button', {type: 'button', class: 'small', onclick: () => load(first + (later ? 25 : -25))}, text));
  async function load(from) {
    try {
      const page = await fetchJson(`playground/jobs/${job.id}/rows/${from}`);
      first = page.first;
      body.replaceChildren(...page.rows.map((row) => element('tr', {}, element('td', {class: 'number'}, String(row.line)),
        row.problem ? element('td', {class: 'error', colspan: 2}, row.problem) : element('td', {}, row.query),
        row.problem ? null : element('td', {class: 'call-text'}, row.answers.map(callText).join('\n') || 'no call'))));
      buttons[0].disabled = first === 0;
      buttons[1].disabled = page.rows.length < 25;
      place.textContent = page.rows.length ? `${first + 1} to ${first + page.rows.length}` : 'none';
    } catch (error) {
      say(error.message, true);
    }
  }
  load(0);
  return element('details', {open: job.stage === 'draft'}, element('summary', {}, `Rows (${count})`),
    element('div', {class: 'scroll'}, element('table', {class: 'rows'}, element('thead', {}, element('tr', {}, ...['', 'request', 'calls'].map((text) => element('th', {scope: 'col'}, text)))), body)),
    element('div', {class: 'bar'}, ...buttons, place));
}

// Fields for one row: {node, read()}; read throws an Error with what is wrong.
export function rowEditor(query, answers, label) {
  const text = element('textarea', {rows: 1, 'aria-label': `${label}: request`}, query);
  const calls = element('textarea', {rows: 2, class: 'code', spellcheck: 'false', 'aria-label': `${label}: calls as JSON`}, answers);
  return {node: element('div', {}, text, calls), read: () => {
    let list;
    try {
      list = JSON.parse(calls.value);
    } catch (error) {
      throw new Error(`${label}: the calls are not JSON: ${error.message}`);
    }
    return {query: text.value, answers: list};
  }};
}

// A row by hand, for a draft; calls `changed` when it is there.
export function addRowForm(job, changed) {
  const row = rowEditor('', '[]', 'New row');
  return element('details', {}, element('summary', {}, 'Add a row by hand'), row.node,
    element('button', {type: 'button', class: 'small', onclick: async () => {
      try {
        await postJson(`playground/jobs/${job.id}/rows`, {rows: [row.read()]});
        changed();
        say('The row was added.');
      } catch (error) {
        say(error.message, true);
      }
    }}, 'Add'));
}

export async function download(job) {
  const reply = await request(`playground/jobs/${job.id}/bundle`);
  const link = element('a', {href: URL.createObjectURL(await reply.blob()), download: `${job.model}.zip`});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
