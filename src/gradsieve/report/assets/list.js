// The list of rows: search, filters, order, pages, and the details of a row when it is opened.

function matches(words, source, subtask) {
  const { row, subtask: of } = state.view.shown, found = [];
  for (let n = 0; n < row.length; n++) {
    if (source >= 0 && report.rows[row[n]][0] !== source) continue;
    if (subtask >= 0 && of[n] !== subtask) continue;
    if (words.length) {
      const text = searched(row[n]);
      if (!words.every((word) => text.includes(word))) continue;
    }
    found.push(n);
  }
  return found;
}

function ordered(found) {
  const { row, score, rank } = state.view.shown, kind = at("sort").value;
  const tokens = (n) => report.rows[row[n]][2], source = (n) => report.rows[row[n]][0];
  const by = {
    "score down": (a, b) => score[b] - score[a],
    "score up": (a, b) => score[a] - score[b],
    short: (a, b) => tokens(a) - tokens(b),
    long: (a, b) => tokens(b) - tokens(a),
    source: (a, b) => source(a) - source(b) || rank[a] - rank[b],
  }[kind];
  return by ? found.sort(by) : found;
}

// Filter, count, sort and draw.
function refresh() {
  const { group } = state.view.shown;
  const found = matches(wanted(), Number(at("source").value), Number(at("subtask").value));
  const counts = report.groups.map(() => 0);
  for (const n of found) counts[group[n]]++;
  for (const label of at("groups").querySelectorAll("label")) {
    const kind = Number(label.firstChild.value);
    label.lastChild.textContent = `${label.dataset.name} ${whole.format(kind < 0 ? found.length : counts[kind])}`;
  }
  state.found = ordered(state.group < 0 ? found : found.filter((n) => group[n] === state.group));
  state.page = 0;
  showPage();
}

function showPage() {
  const { found } = state, pages = Math.max(1, Math.ceil(found.length / PAGE)), words = wanted();
  const first = state.page * PAGE, last = Math.min(found.length, first + PAGE);
  const byMethods = at("layout").value === "methods", page = found.slice(first, last);
  at("rows").hidden = byMethods;
  at("rows").replaceChildren(...(byMethods ? [] : page.map((n) => listed(n, words))));
  at("by-method").replaceChildren(...(byMethods && page.length ? [byMethod(page, words)] : []));
  at("count").textContent = found.length ? `Rows ${whole.format(first + 1)} to ${whole.format(last)} of ${whole.format(found.length)}` : "No row matches: use fewer words, or other filters.";
  at("page").textContent = `Page ${whole.format(state.page + 1)} of ${whole.format(pages)}`;
  at("previous").disabled = state.page === 0;
  at("next").disabled = state.page >= pages - 1;
  at("pages").hidden = pages === 1;
  at("export").disabled = !found.length;
  save();
}

function turnPage(by) {
  state.page += by;
  showPage();
  at("examples").scrollIntoView();
}

function listed(n, words) {
  const { shown, scores, subtasks } = state.view, group = shown.group[n];
  const [source, , tokens, truncated, leak, , turns] = report.rows[shown.row[n]];
  const low = scores.edges[0], high = scores.edges.at(-1), subtask = subtasks[shown.subtask[n]];
  const badges = [];
  if (state.group < 0 || group === 1) badges.push(element("span", { class: "badge" }, report.groups[group]));
  if (truncated) badges.push(element("span", { class: "badge" }, "truncated"));
  if (leak) badges.push(element("span", { class: "badge alarm" }, "leak"));
  const about = element("span", { class: "about" }, named(report.sources[source]),
    ...(subtask ? [" \u00b7 ", named(subtask[0])] : []), ` \u00b7 ${whole.format(tokens)} tokens `, ...badges);
  const bar = element("span", { class: "score" }, score(shown.score[n]), element("i", { "width%": 100 * within(shown.score[n], low, high) }));
  const head = element("button", { type: "button", class: "head", "aria-expanded": "false", "aria-controls": `detail-${n}` },
    element("span", { class: "rank", title: `rank ${shown.rank[n]} by score` }, whole.format(shown.rank[n])), bar,
    element("span", { class: "snippet", dir: "auto" }, ...marked(snippet(turns, words), words)), about);
  const box = element("div", { class: "detail", id: `detail-${n}`, hidden: true });
  const toggle = () => {
    box.hidden = !box.hidden;
    head.setAttribute("aria-expanded", String(!box.hidden));
    if (!box.firstChild) box.append(...detail(n, words));
  };
  head.addEventListener("click", () => {
    toggle();
    state.open = box.hidden ? null : keyOf(n);
    save();
  });
  if (isOpen(n)) toggle();
  return element("li", { class: group === 0 ? "chosen" : "" }, head, box);
}

function detail(n, words) {
  const { shown } = state.view, [source, id, , , leak, more, turns] = report.rows[shown.row[n]];
  const text = element("div", {}, ...conversation(turns, more, words),
    small(named(report.sources[source]), ", id ", named(id)));
  const why = element("div");
  const reason = shown.reason[n];
  if (reason) why.append(element("h3", {}, "Why it was passed over"), named(reason, "p", { class: "small" }));
  if (leak) why.append(element("h3", {}, "Leak"), named(leak, "p", { class: "small" }));
  why.append(...contributions(n), ...ranksOf(n), ...byPart("By subtask", subtaskScores(n)), ...byPart("By checkpoint", checkpointScores(n)));
  return [text, why];
}

const keyOf = (n) => [report.sources[report.rows[state.view.shown.row[n]][0]], report.rows[state.view.shown.row[n]][1]];
const isOpen = (n) => state.open !== null && keyOf(n).every((part, place) => part === state.open[place]);

// A row's ranks by every method: negative if it is selected, 0 if it has no score.
const ranksByTarget = new Map(Object.entries(report.ranks).map(([target, rows]) => [target, new Map(rows.map(([row, ...places]) => [row, places]))]));
const ranks = (n) => ranksByTarget.get(state.view.target).get(state.view.shown.row[n]);

const ranked = (place) => (place ? whole.format(Math.abs(place)) : "\u2013") + (place < 0 ? " \u2713" : "");

function ranksOf(n) {
  const { methods } = report.overlaps[state.view.target];
  if (methods.length < 2) return [];
  const list = methods.map((name, place) => element("li", { class: ranks(n)[place] < 0 ? "chosen" : "" }, element("span", { class: "amount" }, ranked(ranks(n)[place])), named(name)));
  return [element("h3", {}, "Rank by each method, \u2713 selected"), element("ul", { class: "contributions ranks" }, ...list)];
}

// A table of ranks by row and method; ranks of selected rows are colored.
function byMethod(page, words) {
  const { methods } = report.overlaps[state.view.target];
  const head = element("tr", {}, element("th", { scope: "col" }, "row"), ...methods.map((name) => element("th", { scope: "col", class: name === state.view.method ? "number key-selected" : "number" }, named(name))));
  const rows = page.map((n) => {
    const [source, , , , , , turns] = report.rows[state.view.shown.row[n]];
    const name = element("button", { type: "button", class: "row" }, element("span", { dir: "auto" }, ...marked(snippet(turns, words), words)), named(report.sources[source], "span", { class: "small" }));
    name.addEventListener("click", () => {
      state.open = keyOf(n);
      at("layout").value = "list";
      showPage();
    });
    return element("tr", {}, element("th", { scope: "row" }, name), ...ranks(n).map((place) => element("td", { class: place < 0 ? "number chosen" : "number" }, ranked(place))));
  });
  return element("div", { class: "card scroll" }, element("table", { class: "by-method" }, head, ...rows));
}

// The rows that match the filters, in their current order, as JSON lines.
function download() {
  const { target, method, shown, subtasks } = state.view;
  const lines = state.found.map((n) => {
    const [source, id, tokens, , leak, more, turns] = report.rows[shown.row[n]], subtask = subtasks[shown.subtask[n]];
    const row = {
      target, method, source: report.sources[source], id, group: report.groups[shown.group[n]], rank: shown.rank[n], score: shown.score[n],
      subtask: subtask ? subtask[0] : null, reason: shown.reason[n] || null, leak, tokens,
      messages: turns.map(([role, content]) => ({ role, content })), characters_cut: more,
    };
    return `${JSON.stringify(row)}\n`;
  });
  const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  element("a", { href: url, download: `${target}-${method}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function subtaskScores(n) {
  const { shown, subtasks } = state.view;
  return subtasks.length > 1 ? shown.by_subtask[n].map(([place, part]) => [subtasks[place][0], part]) : [];
}

function checkpointScores(n) {
  const found = state.view.shown.by_checkpoint;
  return found ? found[n].map((part, place) => [`checkpoint ${place + 1}`, part]) : [];
}

const largest = (parts) => Math.max(...parts.map(([, part]) => Math.abs(part)), 1e-12);

// A part of a score, and a bar of its share of the largest part.
const amount = (part, most, text) =>
  element("span", { class: part < 0 ? "amount away" : "amount" }, text, element("i", { "width%": (100 * Math.abs(part)) / most }));

function byPart(title, parts) {
  if (parts.length < 2) return [];
  const most = largest(parts), rows = parts.map(([name, part]) => element("li", {}, amount(part, most, score(part)), named(name)));
  return [element("h3", {}, title), element("ul", { class: "contributions" }, ...rows)];
}

function contributions(n) {
  const { shown, method } = state.view;
  if (!shown.contributions) return [element("h3", {}, "Why"), small(`Scores of ${method} can\u2019t be decomposed by target example.`)];
  const { examples } = targetOf(state.view), parts = shown.contributions[n];
  const most = largest(parts);
  const list = (title, chosen) => chosen.length ? [element("h3", {}, title), element("ul", { class: "contributions" }, ...chosen.map((part) => contribution(part, examples, most)))] : [];
  const total = shown.by_checkpoint[n].reduce((sum, part) => sum + part, 0), rest = total - parts.reduce((sum, [, part]) => sum + part, 0);
  const what = Math.abs(total - shown.score[n]) > 0.01 * most ? "the score for the subtask, which is not standardized" : "the score";
  const others = Math.abs(rest) > 0.01 * most ? [small(`All others: ${signed(rest, score)}. Contributions add up to ${what}, ${score(total)}.`)] : [];
  return [...list("Target examples with positive contributions", parts.filter(([, part]) => part > 0)),
    ...list("Target examples with negative contributions", parts.filter(([, part]) => part < 0).reverse()), ...others];
}

// The common beginning of all examples of a subtask, which doesn't distinguish them.
const beginnings = new Map();

function beginning(examples, subtask) {
  const key = `${state.view.target}\n${subtask}`;
  if (!beginnings.has(key)) {
    const starts = examples.filter((one) => one[1] === subtask).map(([, , , turns]) => request(turns));
    let common = starts[0];
    for (const text of starts) while (!text.startsWith(common)) common = common.slice(0, -1);
    beginnings.set(key, starts.length > 1 ? common.slice(0, Math.max(common.lastIndexOf(" "), common.lastIndexOf("\n")) + 1) : "");
  }
  return beginnings.get(key);
}

function contribution([place, part], examples, most) {
  const [id, subtask, more, turns] = examples[place];
  const common = beginning(examples, subtask), own = request(turns).slice(common.length, common.length + 160).trim();
  const opened = element("details", {}, named((common && own ? "\u2026 " : "") + (own || id), "summary"));
  opened.addEventListener("toggle", () => {
    if (opened.childElementCount === 1) opened.append(...conversation(turns, more, []), small(named(subtask), ", id ", named(id)));
  }, { once: true });
  return element("li", {}, amount(part, most, signed(part, score)), opened);
}

// --- switches -----------------------------------------------------------------------------------

function options(select, items) {
  select.replaceChildren(...items.map(([value, name]) => element("option", { value }, clipped(name))));
}

function showGroups() {
  const names = ["All", "Selected", "Passed over", "Near misses", "Lowest"], { group } = state.view.shown;
  const kinds = [-1, 0, 1, 2, 3].filter((kind) => kind < 0 || group.includes(kind));
  if (!kinds.includes(state.group)) state.group = kinds.includes(0) ? 0 : -1;
  at("groups").replaceChildren(at("groups").querySelector("legend"), ...kinds.map((kind) => {
    const input = element("input", { type: "radio", name: "group", value: kind });
    input.checked = kind === state.group;
    return element("label", { "data-name": names[kind + 1] }, input, element("span"));
  }));
}

function showList(view) {
  const shown = view.shown.group.filter((kind) => kind === 0).length;
  const selected = shown < view.selected ? `the best ${whole.format(shown)} of ${whole.format(view.selected)}` : `all ${whole.format(shown)}`;
  at("examples-hint").textContent = `Here are ${selected} selected rows, the best that were not selected, and those with the lowest scores. Open a row to read it${view.shown.contributions ? " and to see which target examples contribute to its score" : ""}.`;
  const kept = at("source").value;
  const places = report.sources.map((name, place) => [place, name]).filter(([place]) => view.sources[place][1]);
  options(at("source"), [[-1, "all"], ...places]);
  choose("source", kept);
  options(at("subtask"), [[-1, "all"], ...view.subtasks.map(([name], place) => [place, name])]);
  at("subtask").disabled = !view.subtasks.length;
  showGroups();
  refresh();
}

function show() {
  const method = at("method").value, target = at("target").value;
  state.view = report.views.find((view) => view.target === target && view.method === method);
  charts.length = 0;
  state.answers = 0;
  for (const part of [showSummary, showShares, showCharts, showMap, showResults, showAnswers, showList, showTarget, showChecks]) part(state.view);
}

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : systemIsDark.matches;
}

function toggleTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
}

function nameTheme() {
  at("theme").replaceChildren(isDark() ? "\u2600" : "\u263e", element("span", {}, isDark() ? " Light" : " Dark"));
  at("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"}`);
}

function moveFocus(event) {
  const heads = [...at("rows").querySelectorAll(".head")], here = heads.indexOf(document.activeElement);
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || here < 0 || !heads[here + step]) return;
  event.preventDefault();
  heads[here + step].focus();
}

function start() {
  const names = [...new Set(report.views.map((view) => view.target))], methods = [...new Set(report.views.map((view) => view.method))];
  options(at("target"), names.map((name) => [name, name]));
  options(at("method"), methods.map((name) => [name, name]));
  options(at("sort"), Object.entries(SORTS));
  at("target").disabled = names.length === 1;
  at("method").disabled = methods.length === 1;
  for (const id of ["target", "method"]) at(id).addEventListener("change", show);
  for (const id of ["source", "subtask", "sort"]) at(id).addEventListener("change", refresh);
  at("layout").parentElement.hidden = methods.length === 1;
  at("layout").addEventListener("change", showPage);
  at("plain").addEventListener("change", () => { showPage(); showTarget(state.view); showAnswers(state.view); });
  at("export").addEventListener("click", download);
  at("differ").addEventListener("change", () => { state.answers = 0; showAnswers(state.view); });
  at("answers-previous").addEventListener("click", () => turnAnswers(-1));
  at("answers-next").addEventListener("click", () => turnAnswers(1));
  window.addEventListener("hashchange", restore);
  at("query").addEventListener("input", refresh);
  at("groups").addEventListener("change", (event) => { state.group = Number(event.target.value); refresh(); });
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  at("previous").addEventListener("click", () => turnPage(-1));
  at("next").addEventListener("click", () => turnPage(1));
  at("rows").addEventListener("keydown", moveFocus);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      at("query").focus();
    }
  });
  at("theme").addEventListener("click", toggleTheme);
  systemIsDark.addEventListener("change", nameTheme);
  nameTheme();
  showRun();
  show();
  state.address = address();
  restore();
  // Texts are prepared while the page is idle, so that searching is fast from the first letter.
  let next = 0;
  const prepare = () => {
    for (const end = Math.min(report.rows.length, next + 500); next < end; next++) searched(next);
    if (next < report.rows.length) setTimeout(prepare);
  };
  setTimeout(prepare);
}
