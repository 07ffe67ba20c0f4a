// One run: its actions as a tree and on a timeline, live.
import { actionPanel } from "./action.js";
import { call, clock, config, follow, snapshot, stream } from "./connect.js";
import { announce, batched, copyButton, fill, h, setAttribute, setText } from "./dom.js";
import { duration, isTerminal, millis, phaseOf, phaseSign, phaseWord } from "./format.js";
import { Rows } from "./rows.js";
import { runPath, showBadge, showTime, viewLink } from "./runs.js";
import { runSummary } from "./summary.js";
import { Timeline } from "./timeline.js";
import { endOf, nodeOf, Tree } from "./tree.js";

const SERVICE = "flyteidl2.workflow.RunService";
const MOST_ANNOUNCED = 20;
// All actions come in messages of so many; the last one has fewer.
const ACTIONS_AT_ONCE = 200;
const BETWEEN_PARTS = 150;

/** The view of a run; see runsView. `dialog(options)` asks the user something. */
export function runView({ main, run, query, replace, status, signal, dialog }) {
  const tree = new Tree();
  const collapsed = new Set();
  const filter = { phase: "", text: "" };
  let mode = query.get("view") === "tree" || query.get("view") === "timeline" ? query.get("view") : matchMedia("(max-width: 720px)").matches ? "tree" : "timeline";
  let chosen = query.get("action") || "";
  let panel = null;
  let details = null;
  let isComplete = false;
  let needsRows = false;
  let drawnAt = -Infinity;
  let critical = new Set();
  let criticalOf = -1;
  let criticalAt = 0;
  let showsCritical = query.get("critical") === "1";
  let failure = null;

  document.title = `${run.name} · etcd-actions`;
  const identifier = { org: "", project: run.project, domain: run.domain, name: run.name };
  const summary = runSummary({
    run,
    onPhase: (phase) => {
      filter.phase = filter.phase === phase ? "" : phase;
      redraw(true);
    },
    onAction: (name) => choose(name),
  });
  const notice = h("div", { class: "empty", hidden: true });
  const abort = h("button", { type: "button", class: "danger", hidden: true, on: { click: abortRun } }, "Abort run");
  const redrawSoon = batched(drawNow);
  const timeline = new Timeline(() => redraw());
  const head = h(
    "div",
    { class: "row head actions-head", role: "row" },
    h("span", { class: "name", role: "columnheader" }, "Action"),
    h("span", { class: "phase", role: "columnheader" }, "Phase"),
    h("span", { class: "tries", role: "columnheader" }, "Attempt"),
    h("span", { class: "started", role: "columnheader" }, "Started"),
    h("span", { class: "took", role: "columnheader" }, "Duration"),
    h("span", { class: "when", role: "columnheader", "aria-label": "Timeline" }, timeline.axis),
  );
  const rows = new Rows({
    role: "treegrid",
    label: `Actions of ${run.name}`,
    head,
    rowHeight: matchMedia("(max-width: 720px)").matches ? 40 : 30,
    key: (row) => row.name,
    make: makeRow,
    update: showRow,
    open: (row) => choose(row.name),
    keys: {
      ArrowRight: (row) => (row.hasChildren ? (row.isOpen ? rows.select(tree.childrenOf(row.name)[0]) : toggle(row.name), true) : false),
      ArrowLeft: (row) => {
        if (row.hasChildren && row.isOpen && filter.text === "" && filter.phase === "") toggle(row.name);
        else if (tree.nodes.get(row.name)?.parent) rows.select(tree.nodes.get(row.name).parent);
        return true;
      },
      " ": (row) => (row.hasChildren ? (toggle(row.name), true) : false),
      "*": () => (collapsed.clear(), redraw(true), true),
      "+": () => (timeline.zoom(0.5), true),
      "-": () => (timeline.zoom(2), true),
      0: () => (timeline.fit(), true),
      "<": () => (timeline.pan(-0.25), true),
      ">": () => (timeline.pan(0.25), true),
    },
  });
  rows.element.classList.add("actions");
  rows.element.addEventListener(
    "wheel",
    (event) => {
      if (mode !== "timeline" || !(event.ctrlKey || event.shiftKey)) return;
      event.preventDefault();
      const box = timeline.axis.getBoundingClientRect();
      const around = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      if (event.ctrlKey) timeline.zoom(event.deltaY > 0 ? 1.25 : 0.8, around);
      else timeline.pan((event.deltaY || event.deltaX) > 0 ? 0.1 : -0.1);
    },
    { passive: false },
  );
  const modes = h(
    "div",
    { class: "modes", role: "group", "aria-label": "View" },
    ["tree", "timeline"].map((each) => h("button", { type: "button", data: { mode: each }, on: { click: () => setMode(each) } }, each === "tree" ? "Tree" : "Timeline")),
  );
  const criticalButton = h(
    "button",
    {
      type: "button",
      class: "critical-button",
      title: "The actions that decided when the run ended",
      on: {
        click: () => {
          showsCritical = !showsCritical;
          remember();
          redraw();
        },
      },
    },
    "Critical path",
  );
  const search = h("input", {
    type: "search",
    placeholder: "Find an action",
    "aria-label": "Find an action",
    autocomplete: "off",
    spellcheck: "false",
    data: { find: "" },
    on: {
      input: () => {
        filter.text = search.value.trim().toLowerCase();
        redraw(true);
      },
    },
  });
  const aside = h("aside", { class: "panel", hidden: true, "aria-label": "Action" });
  const body = h(
    "div",
    { class: "run-body" },
    h("section", { class: "table", "aria-label": "Actions" }, rows.frame, notice),
    aside,
  );
  fill(
    main,
    h(
      "div",
      { class: "bar" },
      snapshot === null ? h("a", { href: "/", class: "back", data: { go: "" }, "aria-label": "All runs" }, "← Runs") : null,
      h("h1", { class: "title", title: run.name }, run.name),
      copyButton(run.name, "the name of the run"),
      summary.phase,
      h("span", { class: "spring" }),
      abort,
    ),
    summary.facts,
    summary.problem,
    h(
      "div",
      { class: "bar tools" },
      h("div", { class: "bar" }, summary.progress, summary.counted, summary.chips),
      h("div", { class: "bar controls" }, search, modes, criticalButton, timeline.tools),
    ),
    body,
  );
  setMode(mode);

  const tick = setInterval(() => {
    if (tree.size > 0 && tree.ended < tree.size) redraw();
  }, 1000);
  const escape = (event) => {
    if (event.key === "Escape" && panel !== null && !document.querySelector("dialog[open]")) choose("");
    else if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      search.focus();
    }
  };
  document.addEventListener("keydown", escape);
  const resized = new ResizeObserver(([{ contentRect }]) => {
    timeline.width = contentRect.width;
    redraw();
  });
  resized.observe(timeline.axis);
  signal.addEventListener("abort", () => {
    clearInterval(tick);
    document.removeEventListener("keydown", escape);
    resized.disconnect();
    rows.close();
    panel?.close();
  });

  follow({
    signal,
    open: (stop) =>
      stream(`${SERVICE}/WatchActions`, [[1, [[2, run.project], [3, run.domain], [4, run.name]]]], {
        type: "flyteidl2.workflow.WatchActionsResponse",
        signal: stop,
      }),
    report: (how, error) => {
      status(how, error);
      if (how === "failed") {
        failure = error;
        redraw(true);
      }
      if (how === "connecting" || how === "lost") isComplete = false;
      if (how === "live") loadDetails();
      if (how === "ended") complete();
    },
    each: (response) => {
      const actions = response.enriched_actions || [];
      let changes = 0;
      for (const each of actions) {
        const node = nodeOf(each, run.name);
        const before = tree.put(node);
        needsRows ||= before === null || before.parent !== node.parent || filter.phase !== "" || filter.text !== "";
        if (isComplete && before !== null && before.phase !== node.phase) {
          changes += 1;
          if (changes <= MOST_ANNOUNCED) announce(`${node.title || node.name}: ${phaseWord(node.phase)}`);
        }
        if (node.name === "a0" && before !== null && before.phase !== node.phase && isTerminal(node.phase)) loadDetails();
      }
      if (actions.length < ACTIONS_AT_ONCE) complete();
      // While a large run arrives, its rows are arranged some times a second only.
      if (isComplete || performance.now() - drawnAt > BETWEEN_PARTS) redraw(needsRows);
    },
  });
  rows.frame.focus({ preventScroll: true });
  if (chosen) choose(chosen);

  /** All actions are there. */
  function complete() {
    isComplete = true;
    needsRows ||= !tree.isComplete;
    tree.complete();
    redraw();
  }

  /** What only the run's own details have: labels, who started it, why it failed. */
  async function loadDetails() {
    try {
      const response = await call(`${SERVICE}/GetRunDetails`, { runId: identifier }, signal);
      details = response.details || null;
      if (details?.action && tree.root === null) showExpired(details.action);
      redraw();
    } catch (error) {
      if (!signal.aborted) {
        failure = error;
        redraw(true);
      }
    }
  }

  /** A run whose objects have expired: its record has the root. */
  function showExpired({ metadata = {}, status: how = {} }) {
    tree.put({
      name: "a0",
      parent: "",
      group: "",
      kind: "task",
      title: metadata.task?.shortName || metadata.funtionName || "",
      task: metadata.task?.id?.name || "",
      phase: phaseOf(how.phase),
      start: millis(how.startTime),
      end: millis(how.endTime),
      attempts: how.attempts || 1,
      isCached: how.cacheStatus === "CACHE_HIT",
    });
    needsRows = true;
    redraw(true);
  }

  function redraw(structure = false) {
    needsRows ||= structure;
    redrawSoon();
  }

  function drawNow() {
    const now = clock();
    if (needsRows) {
      needsRows = false;
      rows.set(tree.rows(collapsed, matcher()));
      drawnAt = performance.now();
    }
    if (showsCritical && criticalOf !== tree.version && (now - criticalAt > 500 || critical.size === 0)) {
      critical = tree.criticalPath(now);
      criticalOf = tree.version;
      criticalAt = now;
    }
    const span = tree.span(now);
    if (span !== null) timeline.setSpan(span);
    if (mode === "timeline") timeline.drawAxis();
    setAttribute(criticalButton, "aria-pressed", String(showsCritical));
    rows.element.classList.toggle("shows-critical", showsCritical);
    if (tree.root !== null) abort.hidden = !config.actions || isTerminal(tree.root.phase);
    summary.show({ tree, details, chosenPhase: filter.phase, now });
    const isEmpty = rows.rows.length === 0;
    notice.hidden = !isEmpty;
    rows.frame.hidden = isEmpty;
    if (isEmpty) fill(notice, ...whyEmpty());
    rows.draw();
  }

  function whyEmpty() {
    if (failure !== null) {
      const title = failure.code === "not_found" ? "There is no such run" : "The run cannot be shown";
      return [h("h2", {}, title), h("p", {}, failure.message), h("p", {}, viewLink("/", {}, "All runs"))];
    }
    if (tree.size > 0 && tree.isComplete) return [h("h2", {}, "No action meets the filter")];
    return [h("h2", {}, "Loading…")];
  }

  function matcher() {
    if (filter.text === "" && filter.phase === "") return null;
    return (node) =>
      (filter.phase === "" || node.phase === filter.phase) &&
      (filter.text === "" || node.name.toLowerCase().includes(filter.text) || node.title.toLowerCase().includes(filter.text) || node.group.toLowerCase().includes(filter.text));
  }

  function toggle(name) {
    if (collapsed.has(name)) collapsed.delete(name);
    else collapsed.add(name);
    redraw(true);
  }

  function setMode(next) {
    mode = next;
    body.dataset.mode = mode;
    timeline.tools.hidden = mode !== "timeline";
    for (const each of modes.children) setAttribute(each, "aria-pressed", String(each.dataset.mode === mode));
    remember();
    redraw();
  }

  function remember() {
    const state = new URLSearchParams();
    if (chosen) state.set("action", chosen);
    state.set("view", mode);
    if (showsCritical) state.set("critical", "1");
    replace(`${runPath(run)}?${state}`);
  }

  function choose(name) {
    const before = chosen;
    chosen = name;
    panel?.close();
    panel = null;
    aside.hidden = name === "";
    body.classList.toggle("has-panel", name !== "");
    if (name === "") rows.frame.focus({ preventScroll: true });
    else {
      const close = () => choose("");
      panel = actionPanel({ aside, run: identifier, name, close, dialog });
      if (before !== name) rows.select(name);
      panel.focus();
    }
    remember();
  }

  async function abortRun() {
    const reason = await dialog({
      title: `Abort ${run.name}?`,
      text: "All its actions that have not ended are ended.",
      field: "Reason",
      value: "",
      confirm: "Abort run",
    });
    if (reason === null) return;
    try {
      await call(`${SERVICE}/AbortRun`, { runId: identifier, reason: reason || "aborted on the page" });
      announce("The run is being aborted");
    } catch (error) {
      dialog({ title: "It was not aborted", text: error.message });
    }
  }

  function makeRow() {
    const cell = (name, ...inside) => h("span", { class: name, role: "gridcell" }, ...inside);
    const twist = h("button", { type: "button", class: "twist", tabindex: "-1", "aria-hidden": "true" });
    twist.addEventListener("click", () => toggle(twist.closest("[data-key]").dataset.key));
    return h(
      "div",
      { role: "row" },
      cell("name", twist, h("span", { class: "sign", "aria-hidden": "true" }), h("span", { class: "label-text" }), h("span", { class: "id" })),
      cell("phase", h("span", { class: "badge" })),
      cell("tries"),
      cell("started", h("time")),
      cell("took"),
      cell("when", h("span", { class: "gantt" })),
    );
  }

  function showRow(element, row) {
    const node = tree.nodes.get(row.name);
    if (node === undefined) return;
    const [name, phaseCell, tries, started, took, when] = element.children;
    const [twist, sign, label, id] = name.children;
    const now = clock();
    setAttribute(element, "aria-level", String(row.depth + 1));
    setAttribute(element, "aria-expanded", row.hasChildren ? String(row.isOpen) : null);
    element.classList.toggle("context", row.isContext);
    element.classList.toggle("chosen", row.name === chosen);
    const isCritical = showsCritical && critical.has(row.name);
    element.classList.toggle("critical", isCritical);
    element.dataset.phase = node.phase;
    name.style.setProperty("--depth", String(Math.min(row.depth, 24)));
    twist.classList.toggle("none", !row.hasChildren);
    setText(twist, row.isOpen ? "▾" : "▸");
    setText(sign, phaseSign(node.phase));
    setAttribute(sign, "data-phase", node.phase);
    setText(label, node.title || node.name);
    setText(id, node.title && node.title !== node.name ? node.name : "");
    const extra = [node.kind === "task" ? "" : node.kind, node.group && `group ${node.group}`, node.isCached && "from the cache", isCritical && "on the critical path"].filter(Boolean);
    setAttribute(name, "title", [node.title, node.name, ...extra].filter(Boolean).join(" · "));
    setAttribute(element, "aria-label", `${node.title || node.name}, ${phaseWord(node.phase)}${extra.length ? `, ${extra.join(", ")}` : ""}`);
    showBadge(phaseCell.firstChild, node.phase);
    setText(tries, node.attempts > 1 ? String(node.attempts) : "");
    showTime(started.firstChild, node.start);
    const end = endOf(node, now);
    setText(took, node.start === null ? "" : duration(end - node.start));
    if (mode !== "timeline") return;
    const bar = when.firstChild;
    const place = node.start === null ? null : timeline.place(node.start, end);
    bar.hidden = place === null;
    if (place === null) return;
    // A bar at the right edge has its least width left of it.
    bar.style.left = place[0] > 99 ? `min(${place[0].toFixed(3)}%, calc(100% - 3px))` : `${place[0].toFixed(3)}%`;
    bar.style.width = `${place[1].toFixed(3)}%`;
    setAttribute(bar, "data-phase", node.phase);
    setAttribute(bar, "title", `${phaseWord(node.phase)}, ${duration(end - node.start)}`);
  }
}
