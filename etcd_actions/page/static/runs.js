// All runs: filters, pages, and each change as it comes.
import { call, CallError, clock, follow, lines, snapshot } from "./connect.js";
import { announce, batched, fill, h, setAttribute, setText } from "./dom.js";
import { duration, iso, isTerminal, millis, PHASES, phaseOf, phaseSign, phaseWord, shortPhaseWord, plural, when } from "./format.js";
import { Counts } from "./counts.js";
import { Rows } from "./rows.js";

const PAGE = 200;
const MOST_AT_ONCE = 1000;
const FIELDS = [
  ["q", "Name", "text", "part of a name"],
  ["project", "Project", "text", ""],
  ["domain", "Domain", "text", ""],
  ["task", "Task", "text", "part of a name"],
  ["label", "Label", "text", "key=value"],
];

/** A run as the list shows it. */
function runOf(message) {
  const { id = {}, metadata = {}, status = {} } = message.action || {};
  const { project = "", domain = "", name = "" } = id.run || {};
  return {
    key: JSON.stringify([project, domain, name]),
    project,
    domain,
    name,
    task: metadata.task?.id?.name || metadata.funtionName || "",
    version: metadata.task?.id?.version || "",
    by: metadata.executedBy?.user?.id?.subject || "",
    phase: phaseOf(status.phase),
    start: millis(status.startTime),
    end: millis(status.endTime),
    labels: message.labels || {},
  };
}

/** A link to another view; in a report, which has no other, only its text. */
export function viewLink(href, properties, ...children) {
  return snapshot === null ? h("a", { href, data: { go: "" }, ...properties }, ...children) : h("span", properties, ...children);
}

export function runPath({ project, domain, name }) {
  return `/v2/domain/${encodeURIComponent(domain)}/project/${encodeURIComponent(project)}/runs/${encodeURIComponent(name)}`;
}

/** The filters of a request; the service and `meets` read them alike. */
function filtersOf(state) {
  const filters = [];
  const add = (field, fn, value) => value && filters.push({ field, function: fn, values: [value] });
  add("name", "CONTAINS_CASE_INSENSITIVE", state.q);
  add("project", "EQUAL", state.project);
  add("domain", "EQUAL", state.domain);
  add("task_name", "CONTAINS_CASE_INSENSITIVE", state.task);
  add("phase", "EQUAL", state.phase);
  if (state.label) {
    const [key, ...value] = state.label.split("=");
    if (value.length > 0) add(`labels.${key.trim()}`, "EQUAL", value.join("=").trim());
    else filters.push({ field: `labels.${key.trim()}`, function: "EXISTS" });
  }
  return filters;
}

function meets(run, state) {
  const has = (text, part) => !part || text.toLowerCase().includes(part.toLowerCase());
  if (!has(run.name, state.q) || !has(run.task, state.task)) return false;
  if ((state.project && run.project !== state.project) || (state.domain && run.domain !== state.domain)) return false;
  if (state.phase && run.phase !== state.phase) return false;
  if (!state.label) return true;
  const [key, ...value] = state.label.split("=");
  const found = Object.hasOwn(run.labels, key.trim()) ? run.labels[key.trim()] : undefined;
  return value.length > 0 ? found === value.join("=").trim() : found !== undefined;
}

/** The view of all runs; `go(path)` opens a path, `status(state, error)` shows the stream's state. */
export function runsView({ main, query, go, replace, status, signal }) {
  const state = Object.fromEntries(["q", "project", "domain", "task", "label", "phase"].map((name) => [name, query.get(name) || ""]));
  if (!PHASES.includes(state.phase)) state.phase = "";
  const runs = new Map();
  let token = "";
  let isLoading = false;
  let isLoaded = false;
  let failure = null;
  let generation = 0;

  const count = h("p", { class: "count", "aria-live": "polite" });
  const empty = h("div", { class: "empty", hidden: true });
  const head = h(
    "div",
    { class: "row head runs-head", role: "row" },
    ["Phase", "Run", "Task", "Project / domain", "By", "Actions", "Started", "Duration"].map((text) => h("span", { role: "columnheader" }, text)),
  );
  const rows = new Rows({
    role: "grid",
    label: "Runs, newest first",
    head,
    rowHeight: matchMedia("(max-width: 720px)").matches ? 62 : 38,
    key: (run) => run.key,
    make: makeRow,
    update: (element, run) => showRow(element, run, counts.of(run)),
    drawn: () => counts.need([...rows.shown.keys()].map((key) => runs.get(key)).filter(Boolean)),
    open: (run) => go(runPath(run)),
    onScroll: () => {
      const { scrollTop, clientHeight, scrollHeight } = rows.element;
      if (token && !isLoading && scrollHeight - scrollTop - clientHeight < 800) more();
    },
  });
  rows.element.classList.add("runs");
  const counts = new Counts(signal, () => rows.draw());
  const form = filterForm();
  fill(
    main,
    h("div", { class: "bar" }, h("h1", {}, "Runs"), count),
    form,
    h("section", { class: "table", "aria-label": "Runs" }, rows.frame, empty),
  );
  const show = batched(() => {
    const found = [...runs.values()].filter((run) => meets(run, state)).sort((a, b) => b.start - a.start || (a.key < b.key ? 1 : -1));
    rows.set(found);
    const isEmpty = found.length === 0 && (isLoaded || failure !== null);
    empty.hidden = !isEmpty;
    rows.frame.hidden = isEmpty;
    const loading = failure === null ? "Loading…" : "";
    setText(count, isLoaded ? `${plural(found.length, "run")}${token ? ", and more below" : ""}` : loading);
    if (isEmpty) fill(empty, ...whyEmpty());
  });
  const tick = setInterval(() => rows.draw(), 1000);
  signal.addEventListener("abort", () => {
    clearInterval(tick);
    rows.close();
  });

  follow({
    signal,
    open: (stop) => lines("/page/runs", stop),
    report: (how, error) => {
      status(how, error);
      if (how === "live") reload();
      if (how === "failed" && error.code !== "not_found") failWith(error);
      // A service that keeps no list of runs has no stream of them either.
      else if (how === "failed") reload();
    },
    each: (message) => {
      for (const each of message?.runs || []) take(runOf(each));
      if (message !== null) show();
    },
  });
  rows.frame.focus({ preventScroll: true });

  function take(run) {
    const before = runs.get(run.key);
    if (before === undefined && !meets(run, state)) return;
    runs.set(run.key, run);
    if (before === undefined) announce(`New run ${run.name}, ${phaseWord(run.phase)}`);
    else if (before.phase !== run.phase) announce(`Run ${run.name}: ${phaseWord(run.phase)}`);
  }

  async function load(limit, from) {
    const mine = generation;
    isLoading = true;
    try {
      const request = { org: "", request: { limit, token: from, filters: filtersOf(state) } };
      const page = await call("flyteidl2.workflow.RunService/ListRuns", request, signal);
      if (mine !== generation || signal.aborted) return;
      if (from === "") {
        // What the list no longer has was deleted; what came since is newer than it.
        const listed = new Set((page.runs || []).map((each) => runOf(each).key));
        if (!page.token) for (const key of runs.keys()) if (!listed.has(key)) runs.delete(key);
      }
      for (const each of page.runs || []) {
        const run = runOf(each);
        runs.set(run.key, run);
      }
      token = page.token || "";
      isLoaded = true;
      failure = null;
    } catch (error) {
      if (signal.aborted || mine !== generation) return;
      failWith(error);
    } finally {
      if (mine === generation) isLoading = false;
      show();
    }
  }

  function failWith(error) {
    failure = error instanceof CallError ? error : new CallError("unavailable", String(error.message || error));
    show();
  }

  function reload() {
    generation += 1;
    token = "";
    load(Math.min(MOST_AT_ONCE, Math.max(PAGE, runs.size)), "");
  }

  function more() {
    load(PAGE, token);
  }

  function whyEmpty() {
    if (failure !== null) return [h("h2", {}, "The runs cannot be listed"), h("p", {}, failure.message)];
    if (filtersOf(state).length > 0) {
      const clear = h("button", { type: "button", on: { click: () => setState({ q: "", project: "", domain: "", task: "", label: "", phase: "" }) } }, "Clear the filters");
      return [h("h2", {}, "No run meets the filters"), h("p", {}, clear)];
    }
    return [
      h("h2", {}, "No runs yet"),
      h("p", {}, "Start one, and it appears here by itself:"),
      h("pre", {}, `flyte --endpoint ${location.origin} run hello.py main`),
    ];
  }

  function setState(changes) {
    Object.assign(state, changes);
    const next = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
    replace(next.size > 0 ? `/?${next}` : "/");
    for (const [name, value] of Object.entries(state)) {
      const input = form.elements.namedItem(name);
      if (input.value !== value) input.value = value;
    }
    runs.clear();
    isLoaded = false;
    reload();
  }

  function filterForm() {
    let timer = 0;
    const changed = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const now = Object.fromEntries(Object.keys(state).map((name) => [name, made.elements.namedItem(name).value.trim()]));
        if (Object.keys(now).some((name) => now[name] !== state[name])) setState(now);
      }, 200);
    };
    const made = h(
      "form",
      { class: "filters", role: "search", "aria-label": "Filters of runs", on: { input: changed, change: changed, submit: (event) => event.preventDefault() } },
      FIELDS.slice(0, 1).map(field),
      h(
        "label",
        {},
        h("span", {}, "Phase"),
        h("select", { name: "phase" }, h("option", { value: "" }, "any"), PHASES.slice(1).map((phase) => h("option", { value: phase, selected: phase === state.phase }, phaseWord(phase)))),
      ),
      h("button", { type: "button", class: "more", "aria-expanded": "false", on: { click: (event) => setAttribute(event.currentTarget, "aria-expanded", String(made.classList.toggle("open"))) } }, "Filters"),
      FIELDS.slice(1).map(field),
    );
    made.classList.toggle("open", FIELDS.slice(1).some(([name]) => state[name] !== ""));
    return made;
  }

  function field([name, label, type, hint]) {
    return h("label", {}, h("span", {}, label), h("input", { name, type, value: state[name], placeholder: hint, autocomplete: "off", spellcheck: "false", maxlength: "300" }));
  }
}

function makeRow() {
  const cell = (name, ...inside) => h("span", { class: name, role: "gridcell" }, ...inside);
  return h(
    "div",
    { role: "row" },
    cell("phase", h("span", { class: "badge" })),
    cell("name", h("a", { class: "run-link", tabindex: "-1", data: { go: "" } })),
    cell("task"),
    cell("place"),
    cell("by"),
    cell("count"),
    cell("started", h("time")),
    cell("took"),
  );
}

function showRow(element, run, count) {
  const [phase, name, task, place, by, actions, started, took] = element.children;
  showBadge(phase.firstChild, run.phase);
  const link = name.firstChild;
  setText(link, run.name);
  setAttribute(link, "href", runPath(run));
  setAttribute(link, "title", run.name);
  setText(task, run.task);
  setAttribute(task, "title", run.version ? `${run.task}, version ${run.version}` : run.task);
  setText(place, `${run.project} / ${run.domain}`);
  setAttribute(place, "title", `${run.project} / ${run.domain}`);
  setText(by, run.by || "anonymous");
  setAttribute(by, "title", run.by);
  setText(actions, count ? `${count.ended}/${count.actions}` : "");
  setAttribute(actions, "title", count ? `${count.ended.toLocaleString()} of ${plural(count.actions, "action")} ended` : null);
  showTime(started.firstChild, run.start);
  setText(took, run.start === null ? "" : duration((run.end ?? (isTerminal(run.phase) ? run.start : Date.now())) - run.start));
}

/** Show a phase: a sign, a word and a colour. */
export function showBadge(element, phase) {
  if (element.dataset.phase === phase) return;
  element.dataset.phase = phase;
  element.classList.add("badge");
  fill(element, h("span", { class: "sign", "aria-hidden": "true" }, phaseSign(phase)), h("span", { class: "word", title: phaseWord(phase) }, shortPhaseWord(phase)));
}

export function badge(phase) {
  const element = h("span", { class: "badge" });
  showBadge(element, phase);
  return element;
}

/** Show a time in the viewer's zone, with the exact one as its title. */
export function showTime(element, ms) {
  // The words depend on the day, too: they are made again each minute.
  const shown = `${ms} ${Math.floor(clock() / 60_000)}`;
  if (element.dataset.shown === shown) return;
  element.dataset.shown = shown;
  setText(element, when(ms));
  setAttribute(element, "title", iso(ms));
  setAttribute(element, "datetime", iso(ms));
}

export function time(ms) {
  const element = h("time");
  showTime(element, ms);
  return element;
}
