// Small helpers: elements of the page, and requests to this server. Nothing is loaded from elsewhere.
export const get = (id) => document.getElementById(id);

// element('p', {class: 'state', onclick: f}, 'text', child, ...)
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

let key = '';
export function setKey(value) { key = value; }

export class RequestError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param ?? '';
    this.code = error.code ?? '';
  }
}

// A reply that is ok, or RequestError with the server's own words.
export async function request(path, options = {}) {
  const headers = {...options.headers};
  if (key) headers.Authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, {...options, headers});
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new RequestError(0, {message: 'The server does not answer. Is needle-serve still running?'});
  }
  if (reply.ok) return reply;
  if (reply.status === 401) get('key-field').hidden = false;
  let error = {message: `${reply.status} ${reply.statusText}`};
  try {
    error = (await reply.json()).error;
  } catch { /* not from this server: the status has to do */ }
  throw new RequestError(reply.status, error);
}

export const fetchJson = async (path) => (await request(path)).json();

export const post = (path, body, signal) => request(path, {
  method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body), signal});

export const postJson = async (path, body) => (await post(path, body)).json();

// The chunks of a server-sent stream, one object each.
export async function* events(reply) {
  let rest = '';
  for await (const text of reply.body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      if (part !== 'data: [DONE]') yield JSON.parse(part.slice('data: '.length));
    }
  }
}

// Sends a file in pieces, so that no request is long; gives the upload's id.
export async function upload(kind, file, pieceBytes, onProgress) {
  const {id} = await postJson('playground/uploads', {kind, bytes: file.size});
  for (let offset = 0; offset < file.size; offset += pieceBytes) {
    const piece = file.slice(offset, offset + pieceBytes);
    await request(`playground/uploads/${id}`, {
      method: 'POST', headers: {'Content-Type': 'application/octet-stream', 'Upload-Offset': String(offset)}, body: piece});
    onProgress(Math.min(1, (offset + pieceBytes) / file.size));
  }
  return id;
}

// Says something to everybody, also to those who listen instead of looking.
export function say(text, bad = false) {
  const line = get('message');
  line.textContent = text;
  line.classList.toggle('bad', bad);
}

// A tool's parameters in any of the styles that the server reads: [{name, type, required, schema}].
export function parametersOf(tool) {
  const given = tool.parameters ?? tool.inputSchema ?? tool.input_schema ?? {};
  const schema = given.type === 'object' && typeof given.properties === 'object';
  const properties = schema ? given.properties : given;
  return Object.entries(properties ?? {}).map(([name, value]) => ({
    name, schema: value ?? {}, type: value?.type ?? '',
    required: schema ? (given.required ?? []).includes(name) : value?.required === true}));
}

// A list, {"tools": [...]} (MCP), each perhaps wrapped as OpenAI does.
export function unwrapTools(value) {
  const list = Array.isArray(value) ? value : value?.tools;
  return (list ?? []).map((tool) => (tool?.type === 'function' && tool.function ? tool.function : tool));
}
