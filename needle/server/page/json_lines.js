// A JSON parser that knows lines: JSON.parse says where an error is only in some browsers, and never where a value stands.

export class JsonError extends Error {
  constructor(message, line, column) {
    super(message);
    this.line = line;
    this.column = column;
  }
}

class Parser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.lines = new Map();  // path -> line, from 1
    this.counted = {at: 0, line: 1};  // up to here, so that each line is counted once
  }

  fail(expected, at = this.at) {
    const before = this.text.slice(0, at).split('\n');
    const rest = this.text.slice(at);
    const got = rest === '' ? 'the end of the text' : /^[\r\n]/.test(rest) ? 'the end of the line' : (rest.split(/[\s,:\]}]/)[0] || rest[0]).slice(0, 20);
    throw new JsonError(`expected ${expected}, got ${got}`, before.length, before.at(-1).length + 1);
  }

  line() {
    for (; this.counted.at < this.at; ++this.counted.at) {
      if (this.text[this.counted.at] === '\n') ++this.counted.line;
    }
    return this.counted.line;
  }

  skip() { while (this.at < this.text.length && ' \t\r\n'.includes(this.text[this.at])) ++this.at; }

  take(character) {
    this.skip();
    if (this.text[this.at] !== character) return false;
    ++this.at;
    return true;
  }

  string() {
    const match = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
    match.lastIndex = this.at;
    const found = match.exec(this.text);
    if (!found) {
      // Where the string goes wrong, not where it begins.
      const begin = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*/y;
      begin.lastIndex = this.at;
      const good = begin.exec(this.text);
      this.fail('a closing quote or a valid escape', this.at + good[0].length);
    }
    this.at = match.lastIndex;
    return JSON.parse(found[0]);
  }

  value(path, depth) {
    this.skip();
    if (depth > 200) this.fail('less nesting than 200 levels');
    this.lines.set(path, this.line());
    const first = this.text[this.at];
    if (first === '{') return this.object(path, depth);
    if (first === '[') return this.array(path, depth);
    if (first === '"') return this.string();
    const scalar = /(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])/y;
    scalar.lastIndex = this.at;
    const found = scalar.exec(this.text);
    if (!found) this.fail(first === "'" ? 'double quotes around a text' : 'a value');
    this.at = scalar.lastIndex;
    return JSON.parse(found[0]);
  }

  object(path, depth) {
    const result = {};
    this.take('{');
    if (this.take('}')) return result;
    do {
      this.skip();
      if (this.text[this.at] !== '"') this.fail(this.text[this.at] === '}' ? 'another member after the comma' : 'a name in double quotes');
      const at = this.at;
      const name = this.string();
      if (Object.hasOwn(result, name)) this.fail(`a name that is not there already`, at);
      if (!this.take(':')) this.fail('":" after the name');
      Object.defineProperty(result, name, {value: this.value(path === '' ? name : `${path}.${name}`, depth + 1),
                                           enumerable: true, configurable: true, writable: true});
    } while (this.take(','));
    if (!this.take('}')) this.fail('"," or "}"');
    return result;
  }

  array(path, depth) {
    const result = [];
    this.take('[');
    if (this.take(']')) return result;
    do {
      this.skip();
      if (this.text[this.at] === ']') this.fail('another item after the comma');
      result.push(this.value(`${path}[${result.length}]`, depth + 1));
    } while (this.take(','));
    if (!this.take(']')) this.fail('"," or "]"');
    return result;
  }
}

// {value, lines}; lines: the line of each value by its path ("[0].parameters.time"). Throws JsonError.
export function parseWithLines(text) {
  const parser = new Parser(text);
  const value = parser.value('', 0);
  parser.skip();
  if (parser.at < text.length) parser.fail('the end of the text');
  return {value, lines: parser.lines};
}

// What is wrong with tools beyond their JSON: [{path, message}], the first of each tool.
export function toolProblems(value) {
  const list = Array.isArray(value) ? value : value?.tools;
  if (!Array.isArray(list)) return [{path: '', message: 'expected a list of tools'}];
  const root = Array.isArray(value) ? '' : 'tools';
  const names = new Set();
  const problems = [];
  list.forEach((given, index) => {
    const wrapped = given?.type === 'function' && typeof given.function === 'object';
    const tool = wrapped ? given.function : given;
    const path = `${root}[${index}]${wrapped ? '.function' : ''}`;
    const problem = toolProblem(tool, path);
    if (problem) problems.push(problem);
    else if (names.has(tool.name)) problems.push({path: `${path}.name`, message: `a tool called ${tool.name} is declared twice`});
    else names.add(tool.name);
  });
  return problems;
}

function toolProblem(tool, path) {
  if (typeof tool !== 'object' || tool === null || Array.isArray(tool)) return {path, message: 'a tool: expected an object'};
  if (typeof tool.name !== 'string' || tool.name === '') {
    return {path: tool.name === undefined ? path : `${path}.name`, message: 'a tool needs a "name" that is a text'};
  }
  if (tool.description !== undefined && typeof tool.description !== 'string') {
    return {path: `${path}.description`, message: `${tool.name}: "description" is expected to be a text`};
  }
  for (const key of ['parameters', 'inputSchema', 'input_schema']) {
    const given = tool[key];
    if (given === undefined) continue;
    if (typeof given !== 'object' || given === null || Array.isArray(given)) {
      return {path: `${path}.${key}`, message: `${tool.name}: "${key}" is expected to be an object`};
    }
    const nested = given.type === 'object' && given.properties !== undefined;
    const properties = nested ? given.properties : given;
    for (const [name, schema] of Object.entries(nested ? properties : {})) {
      if (typeof schema !== 'object' || schema === null) {
        return {path: `${path}.${key}.properties.${name}`, message: `${tool.name}: parameter "${name}" is expected to be an object`};
      }
    }
    for (const name of nested && Array.isArray(given.required) ? given.required : []) {
      if (!Object.hasOwn(properties, name)) {
        return {path: `${path}.${key}.required`, message: `${tool.name}: "required" names "${name}", which is not among the properties`};
      }
    }
  }
  return null;
}
