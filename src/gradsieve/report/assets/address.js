// The address holds the page's state, so that a view can be shared as a link: target, method, filters, page, open row.

const GROUPS = ["all", ...report.groups];

function address() {
  const { view, group, page, open } = state;
  const source = report.sources[Number(at("source").value)], subtask = view.subtasks[Number(at("subtask").value)];
  const found = {
    target: view.target, method: view.method, group: GROUPS[group + 1], q: at("query").value, source: source || "", subtask: subtask ? subtask[0] : "",
    sort: at("sort").value, layout: at("layout").value, page: page ? page + 1 : "", row: open ? open[1] : "", from: open ? open[0] : "",
  };
  return new URLSearchParams(Object.entries(found).filter(([, value]) => value !== "")).toString();
}

const save = settled(200, () => {
  const now = address();
  if (now !== state.address) history.replaceState(null, "", `#${now}`);
  state.address = now;
});

function choose(id, value) {
  if ([...at(id).options].some((option) => option.value === value)) at(id).value = value;
}

// Show the view that an address describes; unknown names are ignored.
function restore() {
  const given = new URLSearchParams(location.hash.slice(1)), of = (key) => given.get(key) || "";
  if (!given.has("target")) return;
  choose("target", of("target"));
  choose("method", of("method"));
  choose("sort", of("sort") || "best");
  at("query").value = of("q");
  state.group = GROUPS.indexOf(of("group") || "selected") - 1;
  at("layout").value = of("layout") === "methods" ? "methods" : "list";
  state.open = given.has("row") ? [of("from"), of("row")] : null;
  const { open } = state;
  show();
  choose("source", String(report.sources.indexOf(of("source"))));
  choose("subtask", String(state.view.subtasks.findIndex(([name]) => name === of("subtask"))));
  refresh();
  state.open = open;
  const place = open ? state.found.findIndex(isOpen) : -1;
  state.page = place >= 0 ? Math.floor(place / PAGE) : Math.max(0, Math.min(Number(of("page") || 1), Math.ceil(state.found.length / PAGE)) - 1);
  showPage();
  if (place >= 0) at("rows").children[place % PAGE]?.scrollIntoView({ block: "center" });
}

start();
