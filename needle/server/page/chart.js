// A curve as SVG, drawn with the page's own colours.
const SVG = 'http://www.w3.org/2000/svg';
const WIDTH = 560;
const HEIGHT = 180;
const LEFT = 42;
const RIGHT = 18;
const BOTTOM = 22;

function part(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Round values from about `low` to `high`, a few.
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((value) => value >= rough);
  const list = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) list.push(Number(value.toPrecision(6)));
  return list;
}

// `points`: [[step, loss], ...]; the axis reaches to `total` steps, so that the curve grows into a frame that stands still.
export function drawCurve(svg, points, total) {
  svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
  const values = points.map((point) => point[1]);
  const high = Math.max(...values, 1e-6);
  const low = Math.min(0, ...values);
  const right = Math.max(total || 0, points.at(-1)?.[0] ?? 1);
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * step / right;
  const y = (value) => 8 + (HEIGHT - BOTTOM - 8) * (1 - (value - low) / (high - low));
  const nodes = [part('title', {}, points.length === 0 ? 'Training loss, no step yet'
    : `Training loss: ${values[0].toFixed(3)} at first, ${values.at(-1).toFixed(3)} after step ${points.at(-1)[0]} of ${right}`)];
  for (const value of ticks(low, high)) {
    nodes.push(part('line', {class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}),
      part('text', {x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end'}, String(value)));
  }
  for (const step of ticks(0, right)) nodes.push(part('text', {x: x(step), y: HEIGHT - 6, 'text-anchor': 'middle'}, String(step)));
  if (points.length > 0) {
    nodes.push(part('polyline', {class: 'curve', points: points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(' ')}),
      part('circle', {class: 'dot', cx: x(points.at(-1)[0]), cy: y(values.at(-1)), r: 3}));
  }
  svg.replaceChildren(...nodes);
}
