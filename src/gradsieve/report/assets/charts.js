// Elements, numbers and small charts. Text enters the page as text nodes only, never as HTML.
"use strict";

const element = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const drawn = (tag, attributes, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function filled(made, attributes = {}, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "width%") made.style.width = `${Math.max(0, Math.min(100, value))}%`;
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const LONG = 400;
const clipped = (text) => (text.length > LONG ? `${text.slice(0, LONG)}\u2026` : text);

// A name from the data, isolated so that its script doesn't change the direction of adjacent text.
const named = (text, of = "bdi", attributes = {}) =>
  element(of, { dir: "auto", title: clipped(text), ...attributes }, clipped(text));

const small = (...children) => element("p", { class: "small" }, ...children);

const whole = new Intl.NumberFormat("en");
const minus = (text) => text.replace("-", "\u2212");

function number(value) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  if (size >= 1000) return minus(whole.format(Math.round(value)));
  if (size >= 1) return minus(value.toFixed(2));
  if (size >= 0.01) return minus(value.toFixed(3));
  if (size >= 0.0001) return minus(value.toFixed(5));
  return size === 0 ? "0" : minus(value.toExponential(1));
}

// For a column of results: the same number of digits in each.
const fixed = (value) => (value === null ? "\u2013" : minus(value.toFixed(Math.abs(value) < 100 ? 3 : 1)));
const signed = (value, format = number) => (value > 0 ? "+" : "") + format(value);

function percent(share) {
  const digits = share > 0 && share < 0.0995 ? 1 : 0;
  return `${(100 * share).toFixed(digits)}%`;
}

function clock(seconds) {
  if (seconds < 1) return "< 1 s";
  const all = Math.round(seconds);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
}

const range = (values) => [Math.min(...values), Math.max(...values)];

// A value's position between low (0) and high (1); values may be rounded, and low may equal high.
function within(value, low, high) {
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0;
}

// Round values between low and high, about `count` of them.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = 1; power <= high; power *= 10) {
    for (const times of [1, 2, 3, 5, 7]) if (times * power >= low && times * power <= high) found.push(times * power);
  }
  if (found.length < 3) return ticks(low, high, 5).filter(Number.isInteger);
  return found.length > 8 ? found.filter((value) => /^[15]/.test(String(value))) : found;
}

// An axis' labels, without those that would touch another.
function labels(svg, marks, place, y, format) {
  const width = svg.viewBox.baseVal.width;
  let free = -Infinity;
  for (const mark of marks) {
    const text = format(mark), half = 3.4 * text.length, x = Math.min(place(mark), width - half);
    if (x - half < free) continue;
    svg.append(drawn("text", { x, y, "text-anchor": "middle" }, text));
    free = x + half + 8;
  }
}

// Draw axes with their numbers; returns the functions that map values to coordinates.
function axes(svg, width, height, [left, right], [low, high], places, format = number) {
  const x = (value) => 50 + within(value, left, right) * (width - 62), y = (value) => height - 24 - within(value, low, high) * (height - 40);
  for (const mark of ticks(low, high, 4)) {
    svg.append(drawn("line", { x1: 50, x2: width - 12, y1: y(mark), y2: y(mark), class: "axis" }));
    svg.append(drawn("text", { x: 44, y: y(mark) + 4, "text-anchor": "end" }, number(mark)));
  }
  labels(svg, places, x, height - 6, format);
  return [x, y];
}

const charts = [], COLORS = 7;

// Draw into a box now, and again whenever its width changes.
function chart(box, height, label, draw) {
  const paint = () => {
    const width = Math.max(box.clientWidth, 120);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    draw(svg, width, height);
    box.replaceChildren(svg);
  };
  charts.push([box, paint]);
  paint();
}

// A function that calls `act` once, when it has not been called for some milliseconds.
function settled(milliseconds, act) {
  let waiting;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(act, milliseconds);
  };
}

window.addEventListener("resize", settled(60, () => {
  for (const [box, paint] of charts) if (box.isConnected) paint();
}));

// Counts by score: the pool's bars, the selected part of each in color.
function scoreChart(box, bins, cut, format) {
  const low = bins.edges[0], high = bins.edges.at(-1), most = Math.max(...bins.all, 1);
  const label = `Histogram of scores from ${format(low)} to ${format(high)}; the lowest selected score is ${format(cut)}`;
  chart(box, 190, label, (svg, width, height) => {
    const top = 20, bottom = height - 22, left = 6, right = width - 6;
    const place = (score) => left + within(score, low, high) * (right - left);
    const step = (right - left) / bins.all.length;
    bins.all.forEach((count, at) => {
      const chosen = bins.selected[at];
      const title = `${format(bins.edges[at])} to ${format(bins.edges[at + 1])}: ${whole.format(count)} rows, ${whole.format(chosen)} selected`;
      const bar = drawn("g", {}, drawn("title", {}, title));
      for (const [rows, kind] of [[count, "pool"], [chosen, "selected"]]) {
        const size = rows ? Math.max(1.5, (rows / most) * (bottom - top)) : 0;
        bar.append(drawn("rect", { x: left + at * step, y: bottom - size, width: Math.max(0.5, step - 1), height: size, class: kind }));
      }
      svg.append(bar);
    });
    svg.append(drawn("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
    labels(svg, ticks(low, high, Math.max(2, width / 90)), place, height - 6, number);
    if (bins.selected.some((chosen, at) => chosen < bins.all[at])) {
      const x = place(cut), before = x > width * 0.6;
      svg.append(drawn("line", { x1: x, x2: x, y1: top - 4, y2: bottom, class: "cut" }));
      svg.append(drawn("text", { x: x + (before ? -5 : 5), y: 14, "text-anchor": before ? "end" : "start", class: "strong" }, `lowest selected ${format(cut)}`));
    }
  });
}

// Shares by length: the pool filled, the selection as a line.
function lengthChart(box, bins) {
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0) || 1;
  const all = bins.all.map((count) => count / total(bins.all));
  const chosen = bins.selected.map((count) => count / total(bins.selected));
  const { edges } = bins, low = Math.log(edges[0]), high = Math.log(edges.at(-1)), most = Math.max(...all, ...chosen, 1e-9);
  chart(box, 190, `Lengths from ${number(edges[0])} to ${number(edges.at(-1))} tokens, of pool and selection`, (svg, width, height) => {
    const top = 8, bottom = height - 22, left = 6, right = width - 6;
    const x = (tokens) => left + within(Math.log(tokens), low, high) * (right - left);
    const y = (share) => bottom - (share / most) * (bottom - top);
    all.forEach((share, at) => {
      const first = edges[at], last = edges[at + 1] - 1;
      const span = `${whole.format(first)}${last > first ? ` to ${whole.format(last)}` : ""} tokens`;
      svg.append(drawn("rect", { x: x(first), y: y(share), width: Math.max(0.5, x(last + 1) - x(first) - 1), height: bottom - y(share), class: "pool" },
        drawn("title", {}, `${span}: ${percent(share)} of the pool, ${percent(chosen[at])} of the selection`)));
    });
    const path = chosen.map((share, at) => `H${x(edges[at])}V${y(share)}H${x(edges[at + 1])}`).join("");
    svg.append(drawn("path", { d: `M${left} ${bottom}${path}V${bottom}`, class: "curve" }));
    svg.append(drawn("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
    labels(svg, powers(edges[0], edges.at(-1)), x, height - 6, (value) => whole.format(value));
  });
}

function lossChart(box, points) {
  const known = points.filter(([, loss]) => loss !== null);
  if (!known.length) return box.append("No step had a finite loss.");
  const [first, last] = [known[0], known.at(-1)], steps = [first[0], Math.max(last[0], first[0] + 1)];
  chart(box, 190, `Loss from ${number(first[1])} to ${number(last[1])} in ${last[0]} steps`, (svg, width, height) => {
    const marks = ticks(...steps, Math.max(2, width / 90)).filter(Number.isInteger);
    const [x, y] = axes(svg, width, height, steps, range(known.map(([, loss]) => loss)), marks, (value) => whole.format(value));
    svg.append(drawn("path", { d: "M" + known.map(([step, loss]) => `${x(step)} ${y(loss)}`).join("L"), class: "curve" }));
    for (const [step, loss] of known) svg.append(drawn("circle", { cx: x(step), cy: y(loss), r: 2.5, class: "dot" }));
  });
}

// One method's values on the methods' common scale: a dot for each model, a line for the mean.
function stripChart(box, values, mean, low, high, here) {
  chart(box, 18, values.map(number).join(", "), (svg, width) => {
    const x = (value) => 5 + within(value, low, high) * (width - 10);
    svg.append(drawn("line", { x1: 0, x2: width, y1: 9, y2: 9, class: "axis" }));
    for (const value of values) if (value !== null) svg.append(drawn("circle", { cx: x(value), cy: 9, r: 4, class: here ? "dot here" : "dot" }));
    if (mean !== null) svg.append(drawn("line", { x1: x(mean), x2: x(mean), y1: 2, y2: 16, class: "mean" }));
  });
}

// Points, colored by source for the most frequent sources; selected points are larger.
function mapChart(box, legend, points, chosen, sources) {
  const counts = sources.map(() => 0);
  for (const [source] of points) counts[source]++;
  const order = counts.map((_, source) => source).filter((source) => counts[source]).sort((one, other) => counts[other] - counts[one]);
  const color = (source) => `s${Math.min(order.indexOf(source), COLORS)}`;
  legend.replaceChildren(...order.slice(0, COLORS).map((source) => element("li", {}, element("i", { class: `swatch ${color(source)}` }), named(sources[source]))),
    ...(order.length > COLORS ? [element("li", {}, element("i", { class: `swatch s${COLORS}` }), `${order.length - COLORS} others`)] : []));
  const places = points.map((_, place) => place).sort((one, other) => chosen.has(one) - chosen.has(other));
  const across = range(points.map((point) => point[2])), up = range(points.map((point) => point[3]));
  chart(box, 360, `Map of ${points.length} rows, ${chosen.size} of them selected`, (svg, width, height) => {
    for (const place of places) {
      const [source, id, x, y] = points[place], is = chosen.has(place);
      svg.append(drawn("circle", { cx: 8 + within(x, ...across) * (width - 16), cy: height - 8 - within(y, ...up) * (height - 16), r: is ? 4.5 : 2.2, class: `point ${color(source)} ${is ? "is" : ""}` },
        drawn("title", {}, `${clipped(sources[source])}, id ${clipped(id)}${is ? ", selected" : ""}`)));
    }
  });
}

// Shares as a table with shaded cells, only below the diagonal.
function matrix(names, values, format, columns = names) {
  const table = element("table");
  const heads = columns.slice(0, names.length - 1).map((name) => element("th", { scope: "col", class: "middle" }, named(name)));
  table.append(element("tr", {}, element("td"), ...heads));
  names.forEach((name, row) => {
    if (!row) return;
    const cells = names.slice(0, -1).map((_, column) => {
      if (column >= row) return element("td");
      const cell = element("td", { class: "shade" }, format(values[row][column]));
      cell.style.background = `color-mix(in srgb, var(--selected) ${Math.round(45 * within(values[row][column], 0, 1))}%, transparent)`;
      return cell;
    });
    table.append(element("tr", {}, element("th", { scope: "row" }, named(name)), ...cells));
  });
  return element("div", { class: "scroll" }, table);
}
