// The second page: finetunings of this machine, one at a time, from rows to a model.
import {element, fetchJson, get, percent, postJson, say} from './api.js';
import {drawCurve} from './chart.js';
import {addRowForm, checkSummary, download, field, newJobForm, number, rowEditor, rowsTable} from './finetune_rows.js';

const POLL_MS = 700;
const STAGES = {making: 'rows are being asked for', draft: 'ready to train', training: 'training', exporting: 'exporting', done: 'done', failed: 'failed', cancelled: 'cancelled'};
const isActive = (job) => ['making', 'training', 'exporting'].includes(job.stage);

let status = null;
let links = null;  // what the first page does for this one
let jobs = [];
let selected = null;  // an id; null: the form for a new one
let shown = null;     // {id, stage, update(job)} of what is on the page
let timer = 0;

function time(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// ---- the list ------------------------------------------------------------------------------------------------------

async function loadJobs() {
  jobs = (await fetchJson('playground/jobs')).data;
  const list = get('jobs');
  const focused = document.activeElement?.dataset.job;
  list.replaceChildren(...jobs.map((job) => element('li', {}, element('button', {type: 'button', 'data-job': job.id, 'aria-current': String(job.id === selected), onclick: () => select(job.id)},
    job.model || job.name, element('small', {}, `${STAGES[job.stage]}, ${job.rows} rows, ${new Date(1000 * job.created).toLocaleString()}`)))));
  if (focused) list.querySelector(`[data-job="${focused}"]`)?.focus();
  if (jobs.length === 0) list.append(element('li', {class: 'hint'}, 'None yet.'));
}

async function select(id) {
  selected = id;
  shown = null;
  localStorage.setItem('job', id ?? '');
  if (id === null) {
    const form = newJobForm(status, (job) => select(job.id));
    get('job').replaceChildren(form.node);
    shown = {id: null, showTools: form.showTools};
  }
  await refresh();
}

// Shows the selected job as it is now, and again soon if something works on it.
async function refresh() {
  clearTimeout(timer);
  try {
    const job = selected === null ? null : await fetchJson(`playground/jobs/${selected}`);
    await loadJobs();
    if (job === null || job.id !== selected) return;
    show(job);
    if (isActive(job)) timer = setTimeout(refresh, POLL_MS);
  } catch (error) {
    if (error.status === 404) return select(null);
    say(error.message, true);
    timer = setTimeout(refresh, 5 * POLL_MS);  // the server may come back
  }
}

function show(job) {
  const before = shown;
  if (before?.id === job.id && before.stage === job.stage) return before.update(job);
  const {nodes, update} = jobParts(job);
  get('job').replaceChildren(...nodes);
  shown = {id: job.id, stage: job.stage, update};
  update(job);
  if (before?.id === job.id) {
    say(`${job.name}: ${STAGES[job.stage]}${job.message ? `. ${job.message}` : ''}`, job.stage === 'failed');
    if (job.stage === 'done') links.loadModels();
  }
}

async function act(job, action) {
  try {
    await postJson(`playground/jobs/${job.id}/${action}`, {});
    if (action === 'remove') return await select(null);
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
}

const button = (text, kind, onclick) => element('button', {type: 'button', class: kind, onclick}, text);

// ---- one job -------------------------------------------------------------------------------------------------------

function jobParts(job) {
  const buttons = [];
  if (isActive(job)) buttons.push(button('Cancel', 'danger', () => act(job, 'cancel')));
  if (['failed', 'cancelled'].includes(job.stage) && job.settings) buttons.push(button('Continue', 'main', () => act(job, 'resume')));
  if (!isActive(job)) {
    buttons.push(button('Remove', 'danger', () => { if (confirm(`Remove ${job.name} with its rows and checkpoints?`)) act(job, 'remove'); }));
  }
  const message = element('p', {class: job.stage === 'failed' ? 'error' : 'state'});
  const nodes = [element('div', {class: 'bar'}, element('h2', {}, `${job.model || job.name}: ${STAGES[job.stage]}`), ...buttons), message];
  const updates = [(now) => { message.textContent = now.message; }];
  const add = ({node, update}) => {
    nodes.push(node);
    if (update) updates.push(update);
  };
  if (job.stage === 'done') add(resultPart(job));
  if (job.stage === 'draft') add({node: checkSummary(job.check)});
  if (job.stage === 'draft') add(settingsPart(job));
  if (job.settings) add(progressPart());
  if (job.check) nodes.push(rowsTable(job));
  if (job.stage === 'draft') nodes.push(addRowForm(job, () => { shown = null; refresh(); }));
  return {nodes, update: (now) => updates.forEach((update) => update(now))};
}

function settingsPart(job) {
  const bases = [new Option('nothing (from scratch)', 'scratch')];
  if (status.released_weights) bases.push(new Option('the released weights (26 M)', 'released'));
  for (const other of jobs.filter((candidate) => candidate.stage === 'done')) bases.push(new Option(other.model, other.id, false, other.id === job.source.job));
  const shape = field('Size', element('select', {name: 'shape'}, new Option('tiny, 1.9 M: seconds to minutes', 'tiny'), new Option('small, 7 M: minutes and more', 'small')));
  const base = element('select', {name: 'base'}, ...bases);
  const syncShape = () => { shape.hidden = base.value !== 'scratch'; };
  base.addEventListener('change', syncShape);
  syncShape();
  const form = element('form', {}, element('fieldset', {}, element('legend', {}, 'Training'),
    element('div', {class: 'fields'}, field('Starts from', base), shape, field('Passes over the rows', number('epochs', 8, 1, 100))),
    status.can_train ? element('button', {type: 'submit', class: 'main'}, 'Start training')
      : element('p', {class: 'error'}, 'needle-train and needle-export are neither beside needle-serve nor in PATH: build them to train here.')));
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      await postJson(`playground/jobs/${job.id}/start`, {base: base.value, shape: form.elements.shape.value, epochs: Number(form.elements.epochs.value)});
      await refresh();
    } catch (error) {
      say(error.message, true);
    }
  });
  return {node: form};
}

// The curve and what stands around it: made once, changed at each poll, so that nothing jumps.
function progressPart() {
  const bar = element('progress', {max: 1, value: 0, 'aria-label': 'Training'});
  const names = ['step', 'loss', 'exact on validation', 'tokens/s', 'time left'];
  const values = names.map(() => element('b', {}, '\u2013'));
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('class', 'chart');
  svg.setAttribute('role', 'img');
  const validation = element('tbody');
  const node = element('section', {'aria-label': 'Training'}, bar,
    element('div', {class: 'figures'}, ...names.map((name, at) => element('div', {}, values[at], element('span', {class: 'hint'}, name)))),
    element('h4', {}, 'Loss'), svg,
    element('details', {}, element('summary', {}, 'Validation scores'), element('div', {class: 'scroll'}, element('table', {},
      element('thead', {}, element('tr', {}, ...['step', 'perplexity', 'exact match', 'call F1'].map((text) => element('th', {scope: 'col'}, text)))), validation))));
  return {node, update: (job) => {
    const now = job.progress;
    if (now.total_steps) bar.value = now.step / now.total_steps;
    else if (job.stage === 'training') bar.removeAttribute('value');
    const last = now.validation.at(-1);
    const left = job.stage !== 'training' ? '\u2013' : now.seconds_left === null ? 'starting' : now.step < now.total_steps ? time(now.seconds_left) : 'testing';
    const texts = [now.total_steps ? `${now.step} of ${now.total_steps}` : '\u2013', now.loss?.toFixed(3) ?? '\u2013',
      last?.exact_match === undefined ? '\u2013' : percent(last.exact_match), now.tokens_per_second ? now.tokens_per_second.toFixed(0) : '\u2013', left];
    values.forEach((value, at) => { value.textContent = texts[at]; });
    drawCurve(svg, now.curve, now.total_steps);
    validation.replaceChildren(...now.validation.map((scores) => element('tr', {}, element('td', {}, String(scores.step)),
      element('td', {}, (scores.perplexity_int4 ?? scores.perplexity)?.toFixed(3) ?? ''), element('td', {}, scores.exact_match === undefined ? '' : percent(scores.exact_match)),
      element('td', {}, scores.call_f1?.toFixed(3) ?? ''))));
  }};
}

const FIGURES = [['exact_match', 'exact match'], ['call_f1', 'call F1'], ['name_f1', 'name F1'], ['value_accuracy', 'values right'], ['parse_rate', 'parse rate'], ['false_call_rate', 'false calls']];

function comparisonTable(base, finetuned) {
  const columns = base ? [['base', base], ['finetuned', finetuned]] : [['finetuned', finetuned]];
  const row = (name, cell) => element('tr', {}, element('th', {scope: 'row'}, name), ...columns.map(([, report]) => element('td', {class: 'number'}, cell(report))));
  const tools = Object.keys(finetuned.strict.per_tool);
  return element('div', {class: 'scroll'}, element('table', {},
    element('thead', {}, element('tr', {}, element('th', {scope: 'col'}, `${finetuned.examples} test rows`), ...columns.map(([name]) => element('th', {scope: 'col', class: 'number'}, name)))),
    element('tbody', {}, ...FIGURES.map(([key, name]) => row(name, (report) => percent(report.strict[key]))),
      ...tools.map((tool) => row(`${tool}, right`, (report) => {
        const score = report.strict.per_tool[tool];
        return score ? `${score.correct} of ${score.total}` : '\u2013';
      })))));
}

function resultPart(job) {
  const {base, finetuned} = job.progress;
  const other = jobs.find((candidate) => candidate.id === job.settings.base)?.model;
  const node = element('section', {'aria-label': 'Result'}, element('div', {class: 'bar'},
    button('Try it', 'main', () => links.tryModels(job.model, null)),
    button('Compare with another model', '', () => links.tryModels(job.model, other ?? [...get('model').options].map((option) => option.value).find((name) => name !== job.model))),
    button('Download bundle', '', async () => {
      try {
        await download(job);
      } catch (error) {
        say(error.message, true);
      }
    }),
    button('Train on with more rows', '', () => again(job, []))));
  if (!finetuned) return {node};
  node.append(element('h3', {}, base ? 'Base against finetuned' : 'On rows that it never saw'), comparisonTable(base, finetuned));
  if (!base) node.append(element('p', {class: 'hint'}, 'There is no base: the model was trained from scratch. To hold it against another one, compare the two.'));
  node.append(failuresPart(job, finetuned.failures));
  return {node};
}

// What is still wrong, to be mended and trained on.
function failuresPart(job, failures) {
  if (failures.length === 0) return element('p', {class: 'good'}, 'No test row was answered wrongly.');
  const cases = failures.map((failure, index) => {
    const row = rowEditor(failure.query, failure.reference, `Case ${index + 1}`);
    const take = element('input', {type: 'checkbox', 'aria-label': `Take case ${index + 1}`});
    row.node.addEventListener('input', () => { take.checked = true; });
    return {take, row, node: element('div', {class: 'failure'}, element('label', {class: 'reasons'}, take, ` ${failure.reasons.join(', ')}`),
      row.node, element('p', {class: 'hint'}, 'It answered: ', element('code', {}, failure.prediction || 'nothing')))};
  });
  return element('details', {}, element('summary', {}, `Wrong answers (${failures.length})`),
    element('p', {class: 'hint'}, 'Correct what should have been answered, then begin another finetuning with the chosen cases added to the rows.'),
    ...cases.map((item) => item.node),
    button('New finetuning with the chosen cases', 'main', () => {
      try {
        again(job, cases.filter((item) => item.take.checked).map((item) => item.row.read()));
      } catch (error) {
        say(error.message, true);
      }
    }));
}

async function again(job, rows) {
  try {
    const next = await postJson('playground/jobs', {source: {kind: 'job', job: job.id}, rows});
    await select(next.id);
    say(`A new finetuning with ${next.check.rows} rows${rows.length ? `, ${rows.length} of them added` : ''}.`);
    get('job').focus();
  } catch (error) {
    say(error.message, true);
  }
}

export async function startFinetune(given, other) {
  const first = status === null;
  status = given;
  links = other;
  if (first) {
    get('new-job').addEventListener('click', () => select(null));
    links.onTools(() => shown?.showTools?.());
  }
  selected = localStorage.getItem('job') || null;
  await loadJobs();
  if (!jobs.some((job) => job.id === selected)) selected = jobs.find(isActive)?.id ?? null;
  await select(selected);
}
