// The models' answers side by side, and the target's own examples.

const ANSWERS = 5;

function different(question) {
  return new Set(question[5].map(([value]) => value)).size > 1;
}

function answer([value, more, text, final], name, current) {
  const right = value >= 1 ? "right" : value > 0 ? "partly" : "wrong";
  const mark = { right: "\u2713", partly: "~", wrong: "\u2717" }[right];
  return element("div", { class: `answer ${right}` },
    small(element("b", { class: name === current ? "key-selected" : "" }, name), ` ${mark} ${number(value)}`),
    element("div", { class: "text plain", dir: "auto" }, text || "(nothing)", more ? `\u2026 ${whole.format(more)} more characters` : ""),
    final === null ? null : small("compared: ", named(final)));
}

function showAnswers(view) {
  const found = report.answers[view.target];
  at("answers").hidden = !found;
  if (!found) return;
  const { models, metric, of, questions } = found, differ = at("differ").checked;
  const list = questions.filter((question) => !differ || different(question));
  const pages = Math.max(1, Math.ceil(list.length / ANSWERS));
  state.answers = Math.min(state.answers, pages - 1);
  at("answers-hint").textContent = `${questions.length < of ? `${whole.format(questions.length)} of ${whole.format(of)}` : `The ${whole.format(of)}`} held-out questions, with the answer and ${metric} of each method\u2019s first model. All answers are in the run folder (samples.jsonl).`;
  at("asked").replaceChildren(...list.slice(state.answers * ANSWERS, (state.answers + 1) * ANSWERS).map(([id, subtask, more, turns, references, given]) =>
    element("li", {},
      element("div", {}, ...conversation(turns, more, []), small("Reference: ", ...references.flatMap((text, place) => [place ? " or " : "", named(text, "b")]), ` \u00b7 `, named(subtask), ", id ", named(id))),
      element("div", { class: "side" }, ...given.map((one, place) => answer(one, models[place], baseOf(view.method)))))));
  at("answers-page").textContent = list.length ? `Page ${state.answers + 1} of ${pages}, ${whole.format(list.length)} questions` : "All models score the same on each question.";
  at("answers-previous").disabled = state.answers === 0;
  at("answers-next").disabled = state.answers >= pages - 1;
}

function turnAnswers(by) {
  state.answers += by;
  showAnswers(state.view);
  at("answers").scrollIntoView();
}

// The target's examples by subtask; their texts are rendered when a subtask is opened.
function showTarget(view) {
  const { examples } = targetOf(view), groups = new Map();
  for (const example of examples) groups.set(example[1], [...(groups.get(example[1]) || []), example]);
  at("target-hint").textContent = `The ${whole.format(examples.length)} examples that the selection is to resemble in their effect on the model${groups.size > 1 ? `, in ${groups.size} subtasks` : ""}.`;
  at("subtask-list").replaceChildren(...[...groups].map(([name, some]) => {
    const opened = element("details", { class: "card", open: groups.size === 1 && some.length <= 5 },
      element("summary", {}, named(name), element("span", { class: "small" }, ` ${whole.format(some.length)} ${some.length === 1 ? "example" : "examples"}`)));
    const fill = () => {
      if (opened.open && opened.childElementCount === 1) opened.append(...some.flatMap(([id, , more, turns]) => [small("id ", named(id)), ...conversation(turns, more, [])]));
    };
    opened.addEventListener("toggle", fill);
    fill();
    return opened;
  }));
}

function showMap(view) {
  const found = report.map;
  at("map-card").hidden = !found;
  if (!found) return;
  const chosen = new Set(found.selected[view.target][view.method]);
  at("map-hint").replaceChildren(`${whole.format(found.points.length)} of ${whole.format(found.rows)} rows, by the first two principal components of their stored features (${percent(found.share)} of the variance): near rows have similar updates. Colors are sources; large dots are `, element("b", {}, "selected"), ` (${whole.format(chosen.size)}).`);
  mapChart(at("map"), at("legend"), found.points, chosen, report.sources);
}
