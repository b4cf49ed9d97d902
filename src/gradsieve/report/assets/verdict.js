// The conclusions for a target: the verdict, a curve over selection sizes, and validation.

const foundOf = (view) => report.findings[view.target] || { steps: {}, validation: [] };

function showVerdict(view) {
  const { verdict } = foundOf(view), box = at("verdict");
  box.hidden = !verdict;
  if (!verdict) return;
  const cautions = verdict.cautions.map((text) => element("li", { dir: "auto" }, text));
  box.replaceChildren(element("h3", {}, "Verdict"), element("p", { dir: "auto" }, verdict.text),
    cautions.length ? element("ul", { class: "small", "aria-label": "Cautions" }, ...cautions) : "");
}

function showFindings(view, current) {
  const { curve, validation } = foundOf(view), box = at("findings"), cards = [];
  if (curve) cards.push([card(`${curve.metric} by size`, curve.higher_is_better ? "Mean over models, by selected rows; higher is better." : "Mean over models, by selected rows; lower is better."), (plot) => sizeChart(plot, curve, current)]);
  for (const one of validation) {
    cards.push([card("", "A dot is a random subset of the pool: the sum of its rows\u2019 scores, and the loss after training on it."), (plot) => subsetChart(plot, one)]);
    cards.at(-1)[0].firstChild.append("Validation: ", named(one.method));
    cards.at(-1)[0].append(element("p", { dir: "auto" }, one.text));
  }
  box.replaceChildren(...cards.map(([made]) => made));
  for (const [made, draw] of cards) draw(made.appendChild(element("div", { class: "chart" })));
}

function sizeChart(box, curve, current) {
  const lines = Object.entries(curve.lines).map(([name, points]) => [name, points.filter(Boolean)]);
  const all = lines.flatMap(([, points]) => points), levels = Object.entries(curve.levels);
  const log = (rows) => Math.log(rows), rows = [...new Set(all.map(([count]) => count))].sort((a, b) => a - b);
  chart(box, 240, `${curve.metric} of ${lines.map(([name]) => name).join(", ")} by selected rows`, (svg, width, height) => {
    const [x, y] = axes(svg, width - 90, height, range(rows.map(log)), range([...all.map((point) => point[1]), ...levels.map((level) => level[1])]), []);
    labels(svg, rows, (count) => x(log(count)), height - 6, (count) => whole.format(count));
    for (const [name, value] of levels) {
      svg.append(drawn("line", { x1: 50, x2: width - 102, y1: y(value), y2: y(value), class: "cut" }), drawn("text", { x: width - 96, y: y(value) + 4 }, clipped(name)));
    }
    for (const [name, points] of lines) {
      const here = name === current ? " here" : "", [last, value] = points.at(-1);
      svg.append(drawn("path", { d: "M" + points.map(([count, mean]) => `${x(log(count))} ${y(mean)}`).join("L"), class: `line${here}` }));
      for (const [count, mean] of points) svg.append(drawn("circle", { cx: x(log(count)), cy: y(mean), r: 4, class: `dot${here}` }, drawn("title", {}, `${name}, ${whole.format(count)} rows: ${number(mean)}`)));
      svg.append(drawn("text", { x: x(log(last)) + 8, y: y(value) + 4, class: here ? "strong" : "" }, clipped(name)));
    }
  });
}

function subsetChart(box, one) {
  const points = one.points.filter(([score, loss]) => score !== null && loss !== null);
  if (!points.length) return;
  const scores = range(points.map((point) => point[0])), losses = range(points.map((point) => point[1]));
  chart(box, 200, `Loss by summed score of ${points.length} subsets`, (svg, width, height) => {
    const [x, y] = axes(svg, width, height, scores, losses, ticks(...scores, Math.max(2, width / 90)));
    for (const [score, loss] of points) svg.append(drawn("circle", { cx: x(score), cy: y(loss), r: 4, class: "dot here" }, drawn("title", {}, `summed score ${number(score)}, ${one.loss} ${number(loss)}`)));
  });
}
