// One action: attempts, phases, error, log, data, report, and what can be done with it.
import { call, clock, config, follow, snapshot, stream } from "./connect.js";
import { announce, batched, copyButton, fill, h, setAttribute, setText } from "./dom.js";
import { duration, isTerminal, millis, phaseOf, phaseWord } from "./format.js";
import { badge, time } from "./runs.js";
import { bytesOf, namedValues } from "./values.js";

const RUNS = "flyteidl2.workflow.RunService";
const DATA = "flyteidl2.dataproxy.DataProxyService";
const OPERATIONS = "etcd_actions.operations.Operations";
const MOST_LINES = 20_000;
const TABS = [
  ["overview", "Overview"],
  ["log", "Log"],
  ["data", "Data"],
  ["raw", "Raw"],
].filter(([key]) => snapshot === null || !["log", "data"].includes(key));
// Colours and movements of a terminal; a log is shown as text.
const CONTROL = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\-_])|[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g;

/** Show an action in `aside`; returns what ends it, and what takes a newer state of the tree. */
export function actionPanel({ aside, run, name, close, dialog }) {
  const ending = new AbortController();
  const { signal } = ending;
  const actionId = { run, name };
  let details = null;
  let failure = null;
  let stored = null;
  let tab = "overview";
  let endTab = new AbortController();

  const title = h("h2", { tabindex: "-1" }, name);
  const place = h("div", { class: "panel-sub" }, h("code", { title: name }, name), copyButton(name, "the name of the action"));
  const state = h("span", { class: "panel-state" });
  const buttons = h("div", { class: "panel-buttons" });
  const tabs = h(
    "div",
    { class: "tabs", role: "tablist" },
    TABS.map(([key, text]) => h("button", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": "panel-content", data: { tab: key }, on: { click: () => show(key) } }, text)),
  );
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = TABS.findIndex(([key]) => key === tab);
    show(TABS[(at + step + TABS.length) % TABS.length][0]);
    tabs.children[TABS.findIndex(([key]) => key === tab)].focus();
  });
  const content = h("div", { class: "panel-content", id: "panel-content", role: "tabpanel", tabindex: "0" });
  fill(
    aside,
    h("div", { class: "panel-head" }, title, h("button", { type: "button", class: "close", "aria-label": "Close (Escape)", title: "Close (Escape)", on: { click: close } }, "×")),
    place,
    h("div", { class: "panel-line" }, state, buttons),
    tabs,
    content,
  );
  show("overview");

  follow({
    signal,
    open: (stop) => stream(`${RUNS}/WatchActionDetails`, { actionId }, { signal: stop }),
    isDone: () => true,
    report: (how, error) => {
      if (how === "failed") {
        failure = error;
        redraw();
      }
    },
    each: (response) => {
      const before = details === null ? null : phaseOf(details.status?.phase);
      details = response.details || {};
      const now = phaseOf(details.status?.phase);
      if (before !== null && before !== now) announce(`This action: ${phaseWord(now)}`);
      redraw(before !== now);
    },
  });
  const tick = setInterval(() => {
    if (details !== null && !isTerminal(phaseOf(details.status?.phase))) showState();
  }, 1000);

  function redraw(phaseChanged = true) {
    const metadata = details?.metadata || {};
    setText(title, metadata.task?.shortName || metadata.funtionName || metadata.condition?.name || metadata.trace?.name || name);
    setAttribute(title, "title", metadata.task?.id?.name || title.textContent);
    showState();
    showButtons();
    if (tab === "overview" || tab === "raw") show(tab);
    else if (tab === "data" && phaseChanged) show(tab);
    else if (tab === "log") moreAttempts();
  }

  function showState() {
    const how = details?.status;
    if (!how) return;
    const start = millis(how.startTime);
    const end = millis(how.endTime);
    const now = phaseOf(how.phase);
    if (state.dataset.phase !== now) {
      state.dataset.phase = now;
      fill(state, badge(now), h("span", { class: "took" }));
    }
    setText(state.lastChild, start === null ? "" : duration((end ?? (isTerminal(now) ? start : clock())) - start));
  }

  function showButtons() {
    const now = phaseOf(details?.status?.phase);
    const made = [];
    if (config.actions && details !== null && !isTerminal(now)) {
      if (details.condition || details.metadata?.condition) made.push(h("button", { type: "button", class: "primary", on: { click: signalCondition } }, "Signal"));
      made.push(h("button", { type: "button", class: "danger", on: { click: abort } }, "Abort"));
    }
    const key = made.map((each) => each.textContent).join();
    if (buttons.dataset.key !== key) {
      buttons.dataset.key = key;
      fill(buttons, made);
    }
  }

  function show(key) {
    const isSame = key === tab && content.childNodes.length > 0;
    tab = key;
    for (const each of tabs.children) {
      const isChosen = each.dataset.tab === key;
      setAttribute(each, "aria-selected", String(isChosen));
      setAttribute(each, "tabindex", isChosen ? "0" : "-1");
    }
    setAttribute(content, "aria-labelledby", `tab-${key}`);
    endTab.abort();
    endTab = new AbortController();
    signal.addEventListener("abort", () => endTab.abort(), { once: true, signal: endTab.signal });
    const scrolled = isSame ? content.scrollTop : 0;
    if (failure !== null && details === null) fill(content, h("p", { class: "problem" }, failure.message));
    else if (key === "log") showLog(endTab.signal);
    else if (details === null) fill(content, h("p", { class: "quiet" }, "Loading…"));
    else if (key === "overview") showOverview(endTab.signal);
    else if (key === "data") showData(endTab.signal);
    else showRaw(endTab.signal);
    content.scrollTop = scrolled;
  }

  // -- overview ----------------------------------------------------------------------------------

  function showOverview(stop) {
    const { metadata = {}, status = {}, errorInfo, abortInfo, signalInfo, condition, attempts = [] } = details;
    const fact = (what, value) => (value ? [h("dt", {}, what), h("dd", {}, value)] : []);
    const task = metadata.task?.id;
    const report = h("span", {});
    fill(
      content,
      errorInfo?.message ? errorBlock(errorInfo) : null,
      abortInfo ? h("div", { class: "error-block" }, h("h3", {}, "Aborted"), h("pre", {}, abortInfo.reason || "no reason was given"), abortInfo.abortedBy?.user?.id?.subject ? h("p", {}, `by ${abortInfo.abortedBy.user.id.subject}`) : null) : null,
      condition?.prompt ? h("div", { class: "prompt" }, h("h3", {}, "It waits for a signal"), h("p", {}, condition.prompt)) : null,
      h(
        "dl",
        { class: "pairs" },
        fact("Task", task?.name),
        fact("Version", task?.version),
        fact("Type", metadata.task?.taskType || (metadata.actionType || "").replace("ACTION_TYPE_", "").toLowerCase()),
        fact("Parent", metadata.parent),
        fact("Group", metadata.group),
        fact("Started", millis(status.startTime) === null ? "" : time(millis(status.startTime))),
        fact("Ended", millis(status.endTime) === null ? "" : time(millis(status.endTime))),
        fact("Cache", (status.cacheStatus || "").replace("CACHE_", "").toLowerCase().replaceAll("_", " ")),
        fact("Signalled by", signalInfo ? signalInfo.signalledBy?.user?.id?.subject || "anonymous" : ""),
        fact("Recovered from", metadata.recoveredFrom?.run?.name),
      ),
      report,
      h("h3", {}, attempts.length === 1 ? "Attempt" : `${attempts.length} attempts`),
      h("ol", { class: "attempts" }, [...attempts].reverse().map(attemptItem)),
    );
    if (snapshot === null && isTerminal(phaseOf(status.phase)) && details.task?.taskTemplate?.metadata?.generatesDeck) showReport(report, stop);
  }

  function attemptItem(attempt) {
    const phase = phaseOf(attempt.phase);
    const transitions = (attempt.phaseTransitions || []).map((each) => ({ phase: phaseOf(each.phase), start: millis(each.startTime), end: millis(each.endTime) }));
    const from = transitions.find((each) => each.start !== null)?.start ?? null;
    const last = Math.max(...transitions.map((each) => each.end ?? each.start ?? 0), from ?? 0);
    const to = isTerminal(phase) ? last : clock();
    const whole = Math.max(1, to - (from ?? to));
    const bar = h("div", { class: "phase-bar", "aria-hidden": "true" });
    for (const each of transitions) {
      if (isTerminal(each.phase) || each.start === null) continue;
      const part = h("i", { data: { phase: each.phase }, title: `${phaseWord(each.phase)} ${duration((each.end ?? to) - each.start)}` });
      part.style.flexGrow = String(Math.max(0.004, ((each.end ?? to) - each.start) / whole));
      bar.append(part);
    }
    const error = attempt.errorInfo;
    const isOnly = error?.message === details.errorInfo?.message;
    return h(
      "li",
      {},
      h("div", { class: "attempt-line" }, h("strong", {}, `#${attempt.attempt || 1}`), badge(phase), h("span", { class: "took" }, from === null ? "" : duration(to - from)), attempt.logsAvailable && snapshot === null ? h("button", { type: "button", class: "link", on: { click: () => showLogOf(attempt.attempt || 1) } }, "log") : null),
      bar.children.length > 0 ? bar : null,
      h(
        "table",
        { class: "transitions" },
        h("caption", { class: "unseen" }, `Phases of attempt ${attempt.attempt || 1}`),
        transitions.map((each) => h("tr", {}, h("th", { scope: "row" }, badge(each.phase)), h("td", {}, time(each.start)), h("td", { class: "took" }, each.start === null || isTerminal(each.phase) ? "" : duration((each.end ?? to) - each.start)))),
      ),
      error?.message && !isOnly ? errorBlock(error) : null,
    );
  }

  function errorBlock({ message = "", code = "", kind = "" }) {
    const lines = message.trimEnd().split("\n");
    const isLong = lines.length > 12;
    const whole = h("pre", { class: "trace" }, message);
    const what = [code, kind.replace("KIND_", "").toLowerCase()].filter((each) => each && each !== "unspecified").join(", ");
    const summary = lines[lines.length - 1].slice(0, 500);
    return h(
      "div",
      { class: "error-block" },
      h("h3", {}, "Error", what ? h("span", { class: "code" }, what) : null, copyButton(message, "the error")),
      isLong ? [h("p", { class: "summary" }, summary), h("details", { open: true }, h("summary", {}, `${lines.length} lines`), whole)] : whole,
    );
  }

  /** Reports are pages of the user's: they open elsewhere, and the service sandboxes them. */
  async function showReport(slot, stop) {
    try {
      const request = { artifactType: "ARTIFACT_TYPE_REPORT", actionAttemptId: { actionId } };
      const response = await call(`${DATA}/CreateDownloadLink`, request, stop);
      const url = response.preSignedUrls?.signedUrl?.[0] || "";
      if (stop.aborted || !/^https?:\/\//.test(url)) return;
      fill(slot, h("a", { class: "button", href: url, target: "_blank", rel: "noopener noreferrer" }, "Open the report ↗"));
    } catch {
      // The task has ended without its report, or the service has no store: there is no link then.
    }
  }

  // -- log ---------------------------------------------------------------------------------------

  function attemptsSoFar() {
    return Math.max(1, details?.attempts?.length || details?.status?.attempts || 1);
  }

  /** Offer the attempts that began since; follow the newest if the one before it was followed. */
  function moreAttempts() {
    const select = content.querySelector("select");
    const before = select?.children.length ?? Infinity;
    const now = attemptsSoFar();
    if (now <= before) return;
    const wasLast = Number(select.value) === before;
    for (let each = before + 1; each <= now; each += 1) select.append(h("option", { value: each }, `attempt ${each}`));
    if (wasLast) showLogOf(now);
  }

  function showLogOf(attempt) {
    if (tab !== "log") show("log");
    const select = content.querySelector("select");
    if (select !== null) {
      select.value = String(attempt);
      select.dispatchEvent(new Event("change"));
    }
  }

  function showLog(stop) {
    const attempts = attemptsSoFar();
    let ending = new AbortController();
    const output = h("pre", { class: "log", tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" });
    const said = h("p", { class: "quiet", role: "status" }, "Opening…");
    const select = h("select", { "aria-label": "Attempt" }, Array.from({ length: attempts }, (_, at) => h("option", { value: at + 1, selected: at + 1 === attempts }, `attempt ${at + 1}`)));
    const sticks = h("input", { type: "checkbox", checked: true });
    const wraps = h("input", { type: "checkbox", checked: true });
    wraps.addEventListener("change", () => output.classList.toggle("nowrap", !wraps.checked));
    select.addEventListener("change", start);
    stop.addEventListener("abort", () => ending.abort());
    output.addEventListener("scroll", () => {
      sticks.checked = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    });
    fill(content, h("div", { class: "log-tools" }, select, h("label", {}, sticks, " follow"), h("label", {}, wraps, " wrap"), h("span", { class: "spring" }), said), output);
    start();

    function start() {
      ending.abort();
      ending = new AbortController();
      const { signal: mine } = ending;
      let waiting = [];
      let isFresh = true;
      let count = 0;
      const attempt = Number(select.value);
      fill(output);
      const write = batched(() => {
        if (mine.aborted) return;
        if (isFresh) fill(output);
        isFresh = false;
        const batch = waiting;
        waiting = [];
        if (batch.length === 0) return;
        const chunk = h("span", {}, batch.join(""));
        chunk.lines = batch.length;
        output.append(chunk);
        count += batch.length;
        while (count > MOST_LINES && output.children.length > 1) {
          count -= output.firstChild.lines;
          output.firstChild.remove();
        }
        if (sticks.checked) output.scrollTop = output.scrollHeight;
      });
      follow({
        signal: mine,
        open: (each) => stream(`${DATA}/TailLogs`, { actionId, attempt }, { signal: each }),
        // Else the service has ended, and not the attempt.
        isDone: () => attempt < attemptsSoFar() || isTerminal(phaseOf(details?.status?.phase)),
        report: (how, error) => {
          if (how === "connecting" || how === "lost") {
            // It starts again from the first line: the old text stays until that is there.
            isFresh = true;
            waiting = [];
            count = 0;
          }
          output.hidden = how === "failed" && count === 0 && waiting.length === 0;
          setText(said, { connecting: "Opening…", live: "Following", lost: "Lost: trying again…", ended: "End of the log", failed: error?.message || "" }[how]);
        },
        each: (response) => {
          for (const { lines: found = [] } of response.logs || []) {
            for (const each of found) waiting.push((each.message || "").replace(CONTROL, ""));
          }
          write();
        },
      });
    }
  }

  // -- data --------------------------------------------------------------------------------------

  async function showData(stop) {
    if (content.querySelector(".values") === null) fill(content, h("p", { class: "quiet" }, "Loading…"));
    try {
      const data = await call(`${DATA}/GetActionData`, { actionId }, stop);
      if (stop.aborted) return;
      const place = (uri) => (uri ? h("p", { class: "uri" }, h("code", { title: uri }, uri), copyButton(uri, "the place")) : null);
      fill(content, h("h3", {}, "Inputs"), namedValues(data.inputs?.literals), place(data.inputsUri), h("h3", {}, "Outputs"), isTerminal(phaseOf(details?.status?.phase)) ? namedValues(data.outputs?.literals) : h("p", { class: "quiet" }, "not yet"), place(data.outputsUri));
    } catch (error) {
      if (!stop.aborted) fill(content, h("p", { class: "problem" }, error.message));
    }
  }

  // -- raw ---------------------------------------------------------------------------------------

  /** Flyte's message, and the object as it is stored in etcd. */
  async function showRaw(stop) {
    const slot = h("div", {});
    fill(content, rawBlock("Flyte's message", JSON.stringify(details, null, 2)), slot);
    if (stored !== null) fill(slot, stored);
    if (snapshot !== null) return;
    try {
      const request = { project: run.project, domain: run.domain, run: run.name, name };
      for await (const { objects = [] } of stream(`${OPERATIONS}/ListObjects`, request, { signal: stop })) {
        if (objects.length > 0) stored = storedObject(objects[0]);
      }
      if (stored !== null && !stop.aborted) fill(slot, stored);
    } catch (error) {
      if (!stop.aborted) fill(slot, h("p", { class: "problem" }, `The stored object: ${error.message}`));
    }
  }

  function storedObject({ key = "", value = "", createRevision = 0, modRevision = 0 }) {
    const bytes = bytesOf(value);
    let text = new TextDecoder().decode(bytes);
    try {
      text = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      text = `(${bytes.length} bytes that are no JSON: etcd-actions get ${run.name}/${name} -o yaml)`;
    }
    const facts = `revision ${modRevision}, created at ${createRevision}, ${bytes.length.toLocaleString()} bytes`;
    const place = new TextDecoder().decode(bytesOf(key));
    return [rawBlock("Stored object", text), h("p", { class: "quiet" }, facts), h("p", { class: "uri" }, h("code", { title: place }, place), copyButton(place, "the key"))];
  }

  function rawBlock(title, text) {
    return [h("h3", {}, title, copyButton(text, title)), h("pre", { class: "raw" }, text)];
  }

  // -- what can be done --------------------------------------------------------------------------

  async function abort() {
    const reason = await dialog({ title: `Abort ${name}?`, text: "It and all below it are ended.", field: "Reason", value: "", confirm: "Abort action" });
    if (reason === null) return;
    await attempt(`${RUNS}/AbortAction`, { actionId, reason: reason || "aborted on the page" }, "The action is being aborted");
  }

  async function signalCondition() {
    const kind = (details.condition?.type || details.metadata?.condition?.type || {}).simple || "STRING";
    const text = await dialog({
      title: `Signal ${details.metadata?.condition?.name || name}`,
      text: details.condition?.prompt || `It waits for a value: ${kind.toLowerCase()}.`,
      field: "Value",
      value: kind === "BOOLEAN" ? "true" : "",
      choices: kind === "BOOLEAN" ? ["true", "false"] : null,
      confirm: "Signal",
    });
    if (text === null) return;
    let payload = { stringValue: text };
    if (kind === "BOOLEAN") payload = { boolValue: text === "true" };
    else if (kind === "INTEGER" || kind === "FLOAT") {
      if (text.trim() === "" || !Number.isFinite(Number(text)) || (kind === "INTEGER" && !/^\s*-?\d+\s*$/.test(text))) {
        await dialog({ title: "It was not signalled", text: `${text || "nothing"} is no ${kind.toLowerCase()}.` });
        return;
      }
      payload = kind === "INTEGER" ? { intValue: text.trim() } : { floatValue: Number(text) };
    }
    await attempt(`${RUNS}/SignalEvent`, { actionId, payload }, "It is signalled");
  }

  async function attempt(method, request, done) {
    try {
      await call(method, request, signal);
      announce(done);
    } catch (error) {
      if (!signal.aborted) await dialog({ title: "It did not work", text: error.message });
    }
  }

  return {
    close() {
      clearInterval(tick);
      ending.abort();
      fill(aside);
    },
    focus() {
      title.focus({ preventScroll: true });
    },
  };
}
