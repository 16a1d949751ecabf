// Where an answer comes from: confidence, values in the query, tokens, what the grammar did, which tools fit.
import {element, percent} from './api.js';

const COLOURS = 6;  // classes value-0 to value-5 of the style sheet

function bar(share, label) {
  const fill = element('span', {class: 'fill'});
  fill.style.inlineSize = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return element('span', {class: 'bar', role: 'img', 'aria-label': label}, fill);
}

// The query with its bytes [begin, end) in colours: spans count UTF-8 bytes. Of overlapping ones the first wins.
function markedQuery(query, spans) {
  const bytes = new TextEncoder().encode(query);
  const text = (begin, end) => new TextDecoder().decode(bytes.slice(begin, end));
  const line = element('p', {class: 'query-line'});
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.begin - b.begin)) {
    if (span.begin < at) continue;
    line.append(text(at, span.begin), element('mark', {class: `value-${span.colour}`, title: span.name}, text(span.begin, span.end)));
    at = span.end;
  }
  line.append(text(at));
  return line;
}

function confidenceOf(query, confidence) {
  const spans = [];
  const table = element('table', {class: 'confidence'}, element('tbody'));
  const row = (kind, name, share, note) => table.tBodies[0].append(element('tr', {class: kind},
    element('th', {scope: 'row'}, name), element('td', {}, bar(share, percent(share))), element('td', {class: 'number'}, percent(share)), element('td', {class: 'note'}, note)));
  let colour = 0;
  for (const call of confidence.calls) {
    row('call', call.name, call.probability, `name ${percent(call.name_probability)}`);
    for (const argument of call.arguments) {
      const name = element('span', {}, argument.name);
      let note = 'not in the query word for word';
      if (argument.query_span) {
        const [begin, end] = argument.query_span;
        name.className = `key value-${colour % COLOURS}`;
        spans.push({begin, end, name: argument.name, colour: colour % COLOURS});
        note = `\u201c${new TextDecoder().decode(new TextEncoder().encode(query).slice(begin, end))}\u201d of the query`;
        ++colour;
      }
      row('argument', name, argument.probability, note);
    }
  }
  row('whole', 'whole answer', confidence.probability, '');
  row('whole', 'no call instead', confidence.no_call, '');
  return element('section', {}, element('h4', {}, 'How sure, and from where'), markedQuery(query, spans),
    element('div', {class: 'scroll'}, table),
    element('p', {class: 'hint'}, 'The model\'s own probabilities. Forced tokens count as 1.'));
}

const KINDS = {forced: 'forced by the grammar', chosen: 'chosen among what the grammar allows', free: 'chosen freely'};
const shown = (piece) => piece.replaceAll('\u2581', ' ').replaceAll('\n', '\u21b5') || ' ';

function tokenDetail(step) {
  const own = {id: step.id, piece: step.piece, probability: step.probability, allowed: true};
  const others = step.alternatives.some((other) => other.id === step.id) ? step.alternatives : [own, ...step.alternatives];
  const rows = others.map((other) => element('tr', {class: other.allowed ? '' : 'masked'},
    element('td', {class: 'code'}, shown(other.piece)), element('td', {}, bar(other.probability, percent(other.probability))),
    element('td', {class: 'number'}, percent(other.probability)), element('td', {class: 'note'}, other.allowed ? '' : 'masked')));
  const cut = step.outside === undefined || step.kind === 'free' ? '' : ` The grammar ruled out ${percent(step.outside)} of what the model would have said.`;
  return [element('p', {}, element('code', {}, shown(step.piece)), ` ${KINDS[step.kind] ?? step.kind}, ${percent(step.probability)}.${cut}`),
    element('table', {}, element('tbody', {}, ...rows))];
}

// One button a token; the arrow keys go from one to the next, so that Tab passes all of them in one step.
function tokensOf(trace) {
  const detail = element('div', {class: 'token-detail', 'aria-live': 'polite'});
  const list = element('div', {class: 'tokens', role: 'group', 'aria-label': 'Tokens of the answer, arrow keys move'});
  const pick = (index, focus) => {
    [...list.children].forEach((button, at) => {
      button.tabIndex = at === index ? 0 : -1;
      button.setAttribute('aria-pressed', String(at === index));
    });
    detail.replaceChildren(...tokenDetail(trace[index]));
    if (focus) list.children[index].focus();
  };
  trace.forEach((step, index) => {
    const doubt = step.kind === 'forced' ? 'forced' : step.probability > 0.9 ? 'sure' : step.probability > 0.5 ? 'likely' : 'unsure';
    list.append(element('button', {type: 'button', class: `token ${doubt}`, tabindex: '-1', onclick: () => pick(index, false),
      'aria-label': `${shown(step.piece)}, ${step.kind}, ${percent(step.probability)}`}, shown(step.piece)));
  });
  list.addEventListener('keydown', (key) => {
    const at = [...list.children].indexOf(document.activeElement);
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: trace.length - 1}[key.key];
    if (to === undefined || to < 0 || to >= trace.length) return;
    key.preventDefault();
    pick(to, true);
  });
  const least = trace.reduce((worst, step, index) => (step.kind !== 'forced' && step.probability < trace[worst].probability ? index : worst), 0);
  if (trace.length > 0) pick(least, false);
  const forced = trace.filter((step) => step.kind === 'forced').length;
  const cut = Math.max(0, ...trace.filter((step) => step.kind !== 'free').map((step) => step.outside ?? 0));
  return element('section', {}, element('h4', {}, 'Token by token'),
    element('p', {class: 'hint'}, `${forced} of ${trace.length} tokens were forced by the grammar; at most ${percent(cut)} of a step was ruled out.`),
    element('p', {class: 'legend'}, ...[['forced', 'forced'], ['sure', 'over 90 %'], ['likely', 'over 50 %'], ['unsure', 'below']].map(
      ([name, text]) => element('span', {class: `token ${name}`}, text))),
    list, detail);
}

export function rankingOf(tools) {
  const most = Math.max(...tools.map((tool) => tool.score), 1e-9);
  return element('section', {}, element('h4', {}, 'Which tools fit the query'),
    element('div', {class: 'scroll'}, element('table', {}, element('tbody', {}, ...tools.map((tool) => element('tr', {},
      element('th', {scope: 'row'}, tool.name), element('td', {}, bar(tool.score / most, tool.score.toFixed(3))), element('td', {class: 'number'}, tool.score.toFixed(3))))))),
    element('p', {class: 'hint'}, 'Cosine between the query and each tool, from the model\'s retrieval head.'));
}

// `extra`: the field "needle" of a reply; `ranking`: data of /v1/rank, an Error or null.
export function why(query, extra, ranking) {
  const parts = [];
  if (extra.problems?.length) {
    parts.push(element('section', {}, element('h4', {}, 'Calls that break their tool\'s schema'),
      element('ul', {class: 'error'}, ...extra.problems.map((problem) => element('li', {}, `${problem.path}: ${problem.message}`)))));
  }
  if (extra.confidence) parts.push(confidenceOf(query, extra.confidence));
  if (extra.trace?.length) parts.push(tokensOf(extra.trace));
  if (ranking instanceof Error) parts.push(element('p', {class: 'hint'}, `No ranking of the tools: ${ranking.message}`));
  else if (ranking?.length) parts.push(rankingOf(ranking));
  return element('div', {class: 'why'}, ...parts);
}
