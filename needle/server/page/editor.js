// The tools: a text field with line numbers that says in which line something is wrong.
import {get, unwrapTools} from './api.js';
import {JsonError, parseWithLines, toolProblems} from './json_lines.js';

export const EXAMPLES = {
  'Home (flat style)': [
    {name: 'set_alarm', description: 'Set an alarm', parameters: {time: {type: 'string', description: 'time of day', required: true}},
     templates: ['wake me up at {time}', 'set an alarm for {time}', 'alarm at {time}']},
    {name: 'play_music', description: 'Play a song or an artist',
     parameters: {song: {type: 'string', description: 'title'}, artist: {type: 'string', description: 'who plays it'}},
     templates: ['play {song}', 'play {song} by {artist}', 'put on something by {artist}']},
    {name: 'switch_light', description: 'Switch the lights of a room',
     parameters: {room: {type: 'string', required: true}, state: {type: 'string', enum: ['on', 'off'], required: true}},
     templates: ['turn {state} the lights in the {room}', 'switch the {room} light {state}']},
  ],
  'Travel (OpenAI style)': [
    {type: 'function', function: {name: 'get_weather', description: 'Weather forecast for a city',
      parameters: {type: 'object', properties: {city: {type: 'string'}, date: {type: 'string', description: 'day'}}, required: ['city']}}},
    {type: 'function', function: {name: 'book_table', description: 'Book a table in a restaurant',
      parameters: {type: 'object', properties: {people: {type: 'integer', minimum: 1, maximum: 12}, time: {type: 'string', description: 'time of day'}}, required: ['people']}}},
  ],
  'Office (MCP style)': {tools: [
    {name: 'send_message', description: 'Send a text message', inputSchema: {type: 'object',
      properties: {recipient: {type: 'string', description: 'person'}, text: {type: 'string', description: 'message'}}, required: ['recipient', 'text']}},
    {name: 'create_note', description: 'Write a note', inputSchema: {type: 'object', properties: {title: {type: 'string'}}, required: ['title']}},
  ]},
};

let parsed = null;  // {value, lines}; null while the text is wrong
const listeners = [];

export const onTools = (listener) => listeners.push(listener);
// What is sent: the text's own value. null while it is wrong.
export const currentTools = () => (parsed === null ? null : Array.isArray(parsed.value) ? parsed.value : parsed.value.tools);
export const currentToolList = () => unwrapTools(currentTools() ?? []);

function drawNumbers(bad) {
  const count = get('tools').value.split('\n').length;
  get('numbers').replaceChildren(...Array.from({length: count}, (_, index) => {
    const number = document.createElement('span');
    number.textContent = String(index + 1);
    if (index + 1 === bad) number.className = 'bad';
    return number;
  }));
  get('numbers').scrollTop = get('tools').scrollTop;
}

function show(text, line) {
  const state = get('tools-state');
  state.textContent = line ? `Line ${line}: ${text}` : text;
  state.classList.toggle('bad', line !== 0);
  get('tools').setAttribute('aria-invalid', String(line !== 0));
  get('to-line').hidden = line === 0;
  get('to-line').dataset.line = String(line);
  drawNumbers(line);
}

export function readTools() {
  const text = get('tools').value;
  parsed = null;
  let line = 0;
  let message = '';
  try {
    const result = text.trim() === '' ? {value: [], lines: new Map()} : parseWithLines(text);
    const problem = toolProblems(result.value)[0];
    if (problem) {
      line = result.lines.get(problem.path) ?? 1;
      message = problem.message;
    } else {
      parsed = result;
      const count = currentTools().length;
      message = count === 1 ? '1 tool' : `${count} tools`;
      localStorage.setItem('tools', text);
    }
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    line = error.line;
    message = `column ${error.column}: ${error.message}`;
  }
  show(message, line);
  for (const listener of listeners) listener();
}

// A problem that the server found: its path begins with "tools".
export function showToolProblem(path, message) {
  const place = path.replace(/^tools/, '');
  const root = Array.isArray(parsed?.value) ? '' : 'tools';
  let known = root + place;
  while (known !== '' && !parsed?.lines.has(known)) known = known.replace(/(\.[^.[]*|\[\d+\])$/, '');
  show(message, parsed?.lines.get(known) ?? 1);
}

export function setTools(text) {
  get('tools').value = text;
  readTools();
}

function goToLine(line) {
  const lines = get('tools').value.split('\n');
  const begin = lines.slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0);
  get('tools').focus();
  get('tools').setSelectionRange(begin, begin + lines[line - 1].length);
}

export function startEditor() {
  const examples = get('examples');
  for (const name of Object.keys(EXAMPLES)) examples.append(new Option(name, name));
  examples.addEventListener('change', () => {
    if (examples.value) setTools(JSON.stringify(EXAMPLES[examples.value], null, 2));
    examples.value = '';
  });
  get('upload-tools').addEventListener('change', async (change) => {
    if (change.target.files[0]) setTools(await change.target.files[0].text());
    change.target.value = '';
  });
  get('format').addEventListener('click', () => { if (parsed) setTools(JSON.stringify(parsed.value, null, 2)); });
  get('tools').addEventListener('input', readTools);
  get('tools').addEventListener('scroll', () => { get('numbers').scrollTop = get('tools').scrollTop; });
  get('to-line').addEventListener('click', () => goToLine(Number(get('to-line').dataset.line)));
  setTools(localStorage.getItem('tools') ?? JSON.stringify(Object.values(EXAMPLES)[0], null, 2));
}
