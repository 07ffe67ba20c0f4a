// What a run's view says above its actions: phase, facts, progress, counts by phase, and why it failed.
import { fill, h, setAttribute, setText } from "./dom.js";
import { duration, PHASES, phaseSign, phaseWord, plural } from "./format.js";
import { showBadge, showTime, time, viewLink } from "./runs.js";
import { endOf } from "./tree.js";

/** The elements, and what shows a state in them. `onPhase(phase)` filters, `onAction(name)` opens. */
export function runSummary({ run, onPhase, onAction }) {
  const phase = h("span", { class: "badge big" });
  const facts = h("dl", { class: "facts" });
  const progress = h("div", { class: "progress", role: "img" });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Filter by phase" });
  const counted = h("span", { class: "count" });
  const problem = h("div", { class: "problem", hidden: true });
  return { phase, facts, progress, chips, counted, problem, show };

  function show({ tree, details, chosenPhase, now }) {
    const { root } = tree;
    if (root !== null) showBadge(phase, root.phase);
    const done = tree.ended;
    const loading = tree.isComplete ? "" : ", loading…";
    setText(counted, tree.size === 0 ? "" : `${done.toLocaleString()} of ${plural(tree.size, "action")} ended${loading}`);
    showProgress(tree);
    showChips(tree, chosenPhase);
    showFacts(root, details, now);
    showProblem(tree, details);
  }

  function showProblem(tree, details) {
    const error = details?.action?.errorInfo?.message || details?.action?.abortInfo?.reason || "";
    problem.hidden = !error;
    if (error && problem.dataset.text !== error) {
      problem.dataset.text = error;
      const first = error.trim().split("\n");
      fill(
        problem,
        h("strong", {}, tree.root?.phase === "ABORTED" ? "Aborted: " : "Failed: "),
        h("span", { class: "first", title: error.slice(0, 2000) }, first[first.length - 1].slice(0, 400)),
        " ",
        h("button", { type: "button", on: { click: () => onAction(firstFailed(tree) || "a0") } }, "Show where"),
      );
    }
  }

  function showProgress(tree) {
    const total = tree.size || 1;
    const parts = PHASES.filter((each) => tree.counts[each] > 0);
    while (progress.children.length < parts.length) progress.append(h("i"));
    while (progress.children.length > parts.length) progress.lastChild.remove();
    parts.forEach((each, index) => {
      const part = progress.children[index];
      part.dataset.phase = each;
      part.style.flexGrow = String(tree.counts[each] / total);
    });
    setAttribute(progress, "aria-label", parts.map((each) => `${tree.counts[each]} ${phaseWord(each)}`).join(", ") || "no actions");
  }

  function showChips(tree, chosenPhase) {
    const parts = PHASES.filter((each) => tree.counts[each] > 0 || chosenPhase === each);
    const before = [...chips.children].map((each) => each.dataset.phase).join();
    if (before !== parts.join()) {
      fill(
        chips,
        parts.map((each) =>
          h(
            "button",
            {
              type: "button",
              class: "chip",
              data: { phase: each },
              on: { click: () => onPhase(each) },
            },
            h("span", { class: "sign", "aria-hidden": "true" }, phaseSign(each)),
            h("span", { class: "word" }),
          ),
        ),
      );
    }
    for (const chip of chips.children) {
      const each = chip.dataset.phase;
      setText(chip.lastChild, `${(tree.counts[each] || 0).toLocaleString()} ${phaseWord(each)}`);
      setAttribute(chip, "aria-pressed", String(chosenPhase === each));
    }
  }

  function showFacts(root, details, now) {
    if (facts.children.length === 0) {
      const fact = (name, value) => h("div", { data: { fact: name } }, h("dt", {}, name), h("dd", {}, value));
      const place = new URLSearchParams({ project: run.project, domain: run.domain });
      fill(
        facts,
        fact("Project / domain", viewLink(`/?${place}`, {}, `${run.project} / ${run.domain}`)),
        fact("Task", h("span", { class: "value" })),
        fact("By", h("span", { class: "value" })),
        fact("Started", time(null)),
        fact("Duration", h("span", { class: "value" })),
        fact("Labels", h("span", { class: "labels" })),
      );
    }
    const slot = (name) => facts.querySelector(`[data-fact="${name}"] dd`).firstChild;
    const task = details?.action?.metadata?.task?.id;
    setText(slot("Task"), root?.task || task?.name || "");
    setAttribute(slot("Task"), "title", task?.version ? `${task.name}, version ${task.version}` : null);
    setText(slot("By"), details?.action?.metadata?.executedBy?.user?.id?.subject || (details === null ? "" : "anonymous"));
    if (root !== null) {
      showTime(slot("Started"), root.start);
      setText(slot("Duration"), root.start === null ? "" : duration(endOf(root, now) - root.start));
    }
    const labels = Object.entries(details?.runSpec?.labels?.values || {}).sort();
    const key = JSON.stringify(labels);
    const shown = slot("Labels");
    shown.parentElement.parentElement.hidden = labels.length === 0;
    if (shown.dataset.key !== key) {
      shown.dataset.key = key;
      fill(shown, labels.map(([name, value]) => viewLink(`/?${new URLSearchParams({ label: `${name}=${value}` })}`, { class: "label", title: `${name}=${value}` }, `${name}=${value}`)));
    }
  }
}

/** The action that failed first, where the failure began: below its parent, which may end at that time. */
function firstFailed(tree) {
  let found = null;
  for (const node of tree.nodes.values()) {
    if (node.phase !== "FAILED" && node.phase !== "TIMED_OUT") continue;
    if (found === null || (node.end ?? Infinity) <= (found.end ?? Infinity)) found = node;
  }
  return found?.name || "";
}
