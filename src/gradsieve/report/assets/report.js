// Summary, charts, results, checks and the run: the whole page shows the selection named at its top.
// A row is [source, id, tokens, truncated, leak, characters left out, [[role, text], ...]].

const at = (id) => document.getElementById(id);
const report = JSON.parse(at("data").textContent), made = JSON.parse(at("provenance").textContent);
const PAGE = 25, FEW = 12;
const SORTS = {
  best: "as selected, best first", "score down": "highest score", "score up": "lowest score",
  short: "shortest", long: "longest", source: "by source",
};
const state = { view: report.views[0], group: 0, page: 0, answers: 0, open: null };

// Scores of a view, all with the number of digits that its range requires.
function score(value) {
  if (value === null) return "\u2013";
  const { edges } = state.view.scores, range = edges.at(-1) - edges[0];
  return minus(value.toFixed(Math.max(0, Math.min(8, 2 - Math.floor(Math.log10(range))))));
}

// `random-1` is `random` with another seed: results are by method.
const baseOf = (method) => method.replace(/-\d+(?=@|$)/, "");
const targetOf = (view) => report.targets.find((target) => target.name === view.target);
const texts = [];

// Lower-case text of a row, computed at the first search.
function searched(row) {
  if (texts[row] === undefined) {
    const [source, id, , , , , turns] = report.rows[row];
    texts[row] = [report.sources[source], id, ...turns.map((turn) => turn[1])].join("\n").toLowerCase();
  }
  return texts[row];
}

const wanted = () => at("query").value.toLowerCase().split(/\s+/).filter(Boolean);

// The text of the first user turn.
const request = (turns) => (turns.find((turn) => turn[0] === "user") || turns[0] || ["", ""])[1];

function snippet(turns, words) {
  for (const word of words) {
    for (const [, text] of turns) {
      const found = text.toLowerCase().indexOf(word);
      if (found >= 0) return (found > 60 ? "\u2026" : "") + text.slice(Math.max(0, found - 60), found + 240);
    }
  }
  return request(turns).slice(0, 300);
}

// --- the selection ------------------------------------------------------------------------------

function tile(name, value, about) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, element("b", {}, value), element("span", {}, about)));
}

function showSummary(view) {
  const together = report.together ? ", all targets together" : "";
  at("headline").replaceChildren(`${whole.format(view.selected)} of ${whole.format(view.scored)} rows for `, named(view.target, "em"), together);
  at("lead").replaceChildren("Selected by ", element("b", {}, view.method), `: ${view.about}. Model: `, named(report.model), ".");
  document.title = `${view.target}, ${view.method} \u2013 gradsieve report`;
  const out = (list) => list.reduce((sum, [, count]) => sum + count, 0);
  const passed = out(view.passed_over), bare = out(view.not_scored);
  at("tiles").replaceChildren(
    tile("Rows", whole.format(view.selected), `${percent(view.selected / view.scored)} of the scored rows`),
    tile("Tokens", whole.format(view.tokens), `${percent(view.tokens / view.pool_tokens)} of the pool\u2019s`),
    tile("Median length", whole.format(view.median_tokens[0]), `tokens; ${whole.format(view.median_tokens[1])} in the pool`),
    tile("Lowest selected score", score(view.lowest_selected), `scores ${score(view.scores.edges[0])} to ${score(view.scores.edges.at(-1))}`),
    tile("Left out", whole.format(passed + bare), `${whole.format(passed)} passed over, ${whole.format(bare)} not scored`),
    ...bestResult(view));
}

// The headline metric, next to that of random selection or of the untrained model.
function bestResult(view) {
  const metrics = report.results[view.target] || [];
  const { verdict } = foundOf(view);
  const metric = metrics.find((one) => verdict && one.metric === verdict.metric) || metrics.find((one) => !one.metric.endsWith("_loss")) || metrics[0];
  const of = (name) => metric && metric.methods.find((one) => one.method === name);
  const found = of(baseOf(view.method)), other = (baseOf(view.method) !== "random" && of("random")) || of("base");
  return found ? [tile(metric.metric, fixed(found.mean), other ? `${other.method}: ${fixed(other.mean)}` : "after training")] : [];
}

function bars(box, items) {
  const most = Math.max(...items.flatMap(([, one, other]) => [one, other]), 1e-9);
  const list = element("ul", { class: "bars" });
  items.forEach(([name, chosen, pool, title], place) => {
    const times = pool ? chosen / pool : null;
    list.append(element("li", { title, hidden: place >= FEW },
      named(name, "span", { class: "name" }),
      element("span", { class: "track" }, element("i", { "width%": (100 * chosen) / most }), element("i", { class: "pool", "width%": (100 * pool) / most })),
      element("span", { class: "value" }, percent(chosen)),
      element("span", { class: times >= 1.5 ? "times up" : "times" }, !times ? "" : `\u00d7${times.toFixed(times < 10 ? 1 : 0)}`)));
  });
  box.replaceChildren(list);
  if (items.length > FEW) {
    const all = element("button", { type: "button", class: "more" }, `Show all ${items.length}`);
    all.addEventListener("click", () => {
      for (const item of list.children) item.hidden = false;
      all.remove();
    });
    box.append(all);
  }
}

function withoutRows(view) {
  const bare = view.subtasks.filter(([, chosen]) => !chosen).map(([name]) => clipped(name));
  if (!bare.length || report.turns) return "";
  const which = bare.length > 3 ? `${bare.slice(0, 3).join(", ")} and ${bare.length - 3} more` : bare.join(", ");
  return ` No row was selected for ${which}: with select.turns: subtasks each has its turn.`;
}

function showShares(view) {
  const counts = (one, other) => `${whole.format(one)} of ${whole.format(view.selected)} selected; ${whole.format(other)} of ${whole.format(view.scored)} scored`;
  const items = (rows) => rows
    .map(([name, chosen, pool]) => [name, chosen / view.selected, pool / view.scored, counts(chosen, pool)])
    .sort((one, other) => other[1] - one[1] || other[2] - one[2]);
  bars(at("sources"), items(view.sources.map(([chosen, pool], place) => [report.sources[place], chosen, pool])));
  at("subtasks-hint").textContent = view.subtasks.length
    ? `The subtask that a row was selected for: share of the selection, above that of the pool by highest score.${withoutRows(view)}`
    : "This method does not use subtasks.";
  bars(at("subtasks"), items(view.subtasks));
}

function showCharts(view) {
  scoreChart(at("scores"), view.scores, view.lowest_selected, score);
  const [median, before] = view.median_tokens, [chosen, all] = view.truncated;
  const cut = all ? ` Truncated: ${percent(chosen / view.selected)} of the selection, ${percent(all / view.scored)} of the pool.` : "";
  at("lengths-hint").replaceChildren("Share of rows by tokens: pool in gray, ", element("b", { class: "key-selected" }, "selection"), ` as a line; medians ${whole.format(before)} and ${whole.format(median)}.${cut}`);
  lengthChart(at("lengths"), view.lengths);
}

// --- results ------------------------------------------------------------------------------------

function showResults(view) {
  const metrics = report.results[view.target] || [];
  const none = !metrics.length && !foundOf(view).validation.length;
  at("results").hidden = none;
  document.querySelector('nav a[href="#results"]').hidden = none;
  at("results-hint").textContent = !metrics.length ? "" : "After training on each method\u2019s selection. A dot is one trained model, the line the mean. In brackets: 95% interval of the difference to random, over questions and models.";
  at("metrics").replaceChildren(...metrics.map((metric) => element("div", { class: "card" })));
  metrics.forEach((metric, place) => showMetric(at("metrics").children[place], metric, baseOf(view.method)));
  showVerdict(view);
  showFindings(view, view.method.replace(/(-\d+)?(@.*)?$/, ""));
}

function showMetric(card, metric, current) {
  const values = metric.methods.flatMap((one) => one.values).filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values), sign = metric.higher_is_better ? 1 : -1;
  const against = metric.methods.some((one) => one.over.random);
  const heads = [element("th", { scope: "col" }, "method"), element("td", { class: "strip" }), element("th", { scope: "col", class: "number" }, "mean")];
  const { steps } = foundOf(state.view), trained = metric.methods.some((one) => one.method in steps);
  if (trained) heads.push(element("th", { scope: "col", class: "number" }, "steps"));
  if (against) heads.push(element("th", { scope: "col", class: "number" }, "minus random"));
  const table = element("table", {}, element("tr", {}, ...heads));
  card.append(element("h3", {}, `${metric.metric} `, element("span", { class: "small" }, metric.higher_is_better ? "higher is better" : "lower is better")),
    element("div", { class: "scroll" }, table));
  for (const one of [...metric.methods].sort((a, b) => sign * (b.mean - a.mean))) {
    const strip = element("div"), here = one.method === current;
    const mean = fixed(one.mean) + (one.deviation === null ? "" : ` \u00b1 ${fixed(one.deviation)}`);
    const cells = [element("th", { scope: "row" }, one.method), element("td", { class: "strip" }, strip), element("td", { class: "number" }, mean)];
    const gap = one.over.random;
    if (trained) cells.push(element("td", { class: "number" }, one.method in steps ? whole.format(steps[one.method]) : "\u2013"));
    if (against) cells.push(element("td", { class: "number gap" }, ...(gap ? [signed(gap[0], fixed), " ", element("span", {}, `[${signed(gap[1], fixed)}, ${signed(gap[2], fixed)}]`)] : [])));
    table.append(element("tr", { class: here ? "current" : "" }, ...cells));
    stripChart(strip, one.values, one.mean, low, high, here);
  }
}

// --- checks -------------------------------------------------------------------------------------

function card(title, hint, ...content) {
  return element("div", { class: "card" }, element("h3", {}, title), hint ? element("p", { class: "hint" }, hint) : null, ...content);
}

function counted(items) {
  const rows = items.map(([name, count]) => element("tr", {}, element("th", { scope: "row" }, named(name)), element("td", { class: "number" }, whole.format(count))));
  return element("div", { class: "scroll" }, element("table", {}, ...rows));
}

function agreementCards(view) {
  const found = view.agreement;
  if (!found) return [];
  const numbers = found.top.slice(1).map((_, place) => `${place + 1}`);
  const names = [...numbers.map((name) => `checkpoint ${name}`), "score"];
  const rows = `${whole.format(found.rows)} ${found.rows < view.scored ? "rows drawn at random" : "rows"}`;
  return [
    card("Agreement of checkpoints", `Rank correlation (Spearman) of ${rows}: near 1, a single checkpoint would do.`, matrix(names, found.spearman, fixed, numbers)),
    card("Agreement on the top 5%", `Shared rows of the top 5%, of ${rows}.`, matrix(names, found.top, percent, numbers)),
  ];
}

function leakCard() {
  const asked = Object.entries(report.questions);
  if (!asked.length) return card("Leaks", "No target has test questions to compare the pool with.");
  const leaks = report.leaks.shown.map((leak) => [`${leak.source} ${leak.id}: \u201c${leak.run}\u201d (${leak.target}, ${leak.question})`]);
  const compared = asked.map(([name, count]) => `${whole.format(count)} of ${name}`).join(", ");
  const hint = `${report.leaks.rows === 1 ? "1 row of the pool shares" : `${whole.format(report.leaks.rows)} rows of the pool share`} 13 words in a row with a test question (compared with ${compared}).`;
  if (!leaks.length) return card("Leaks", hint);
  const list = element("details", {}, element("summary", {}, leaks.length < report.leaks.rows ? `The first ${leaks.length}` : "Which"), ...leaks.map(([text]) => named(text, "p", { class: "small" })));
  return card("Leaks", hint, list);
}

function showChecks(view) {
  const { passed_over: passed, not_scored: bare } = view, overlap = report.overlaps[view.target];
  const cards = agreementCards(view);
  let curve = null;
  if (report.loss.length) {
    curve = element("div", { class: "chart" });
    cards.push(card("Warm-up", "Training loss by optimizer step, mean of each epoch (of parts of it, if it has many steps).", curve));
  }
  if (overlap.methods.length > 1) {
    const shared = card("Overlap of methods", "Shared rows, divided by the smaller selection.", matrix(overlap.methods, overlap.shares, percent));
    if (overlap.methods.length > 5) shared.classList.add("broad");
    cards.push(shared);
  }
  cards.push(passed.length
    ? card("Passed over", "Rows that would have been selected, by the rule that excluded them.", counted(passed))
    : card("Passed over", "No row was excluded by a rule (near duplicates, leaks, caps of sources)."));
  cards.push(leakCard());
  if (bare.length) cards.push(card("Not scored", "Rows without label tokens, or that could not be read.", counted(bare.slice(0, 10))));
  at("cards").replaceChildren(...cards);
  if (curve) lossChart(curve, report.loss);
}

// --- the run ------------------------------------------------------------------------------------

function showRun() {
  const most = Math.max(...Object.values(made.seconds));
  const times = element("ul", { class: "bars times-only" }, ...Object.entries(made.seconds).map(([name, seconds]) =>
    element("li", {}, element("span", { class: "name" }, name), element("span", { class: "track" }, element("i", { "width%": (100 * seconds) / most })), element("span", { class: "value" }, clock(seconds)))));
  const cost = Object.entries(made.scoring_seconds).map(([name, seconds]) => `${name} ${clock(seconds)}`).join(", ");
  const versions = Object.entries(made.versions).map(([name, version]) => `${name} ${version}`).join(" \u00b7 ");
  const places = Object.entries(made.workers).filter(([, place]) => place).map(([name, place]) => `${name}: ${place}`).join(" \u00b7 ");
  const lines = [`Scoring only: ${cost}.`, places, versions].filter(Boolean);
  const cards = [card("Time", "Seconds per stage, all runs of it together.", times, ...lines.map((line) => small(line)))];
  if (report.checkpoints.length) {
    const heads = ["checkpoint", "mean learning rate", "Adam steps", "v\u2019 < 1e-8"].map((name, place) => element("th", { scope: "col", class: place ? "number" : "" }, name));
    const rows = report.checkpoints.map((one, place) => element("tr", {},
      ...[place + 1, one.learning_rate.toExponential(2), whole.format(one.adam_step), one.below_eps === null ? "\u2013" : percent(one.below_eps)]
        .map((value, column) => element("td", { class: column ? "number" : "" }, String(value)))));
    cards.push(card("Checkpoints", "Last column: share of coordinates with a second moment so small that Adam\u2019s eps matters.", element("div", { class: "scroll" }, element("table", {}, element("tr", {}, ...heads), ...rows))));
  }
  at("made").replaceChildren(...cards);
  at("recipe").textContent = made.recipe;
}
