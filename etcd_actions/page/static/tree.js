// The actions of a run, by parent; kept up to date one action at a time.
import { compareNames, isTerminal, phaseOf } from "./format.js";

const KINDS = { 1: "task", 2: "trace", 3: "condition" };

/** An action of a WatchActionsResponse, as the views need it. */
export function nodeOf(message, run) {
  const { id = {}, metadata = {}, status = {} } = message.action || {};
  const task = metadata.task || {};
  const phase = phaseOf(status.phase || 0);
  return {
    name: id.name || "",
    // A root may be named like its run.
    parent: metadata.parent === run ? "a0" : metadata.parent || "",
    group: metadata.group || "",
    kind: KINDS[metadata.action_type] || "action",
    title: task.short_name || metadata.funtion_name || metadata.trace?.name || metadata.condition?.name || task.id?.name || "",
    task: task.id?.name || "",
    phase,
    start: status.start_time ?? null,
    end: status.end_time ?? null,
    attempts: status.attempts || 1,
    isCached: status.cache_status === 2,
  };
}

export class Tree {
  constructor() {
    this.nodes = new Map();
    this.children = new Map();
    this.counts = {};
    this.order = [];
    this.isStale = false;
    this.isComplete = false;
    this.version = 0;
  }

  /** Note that all actions were taken: from now on one whose parent is missing is shown at the top. */
  complete() {
    this.isStale ||= !this.isComplete;
    this.isComplete = true;
  }

  get size() {
    return this.nodes.size;
  }

  get root() {
    return this.nodes.get("a0") || null;
  }

  /** Take an action; returns its state before, or null for a new one. */
  put(node) {
    const before = this.nodes.get(node.name) || null;
    this.version += 1;
    if (before !== null) {
      this.counts[before.phase] -= 1;
      this.isStale ||= before.parent !== node.parent;
    } else this.isStale = true;
    this.counts[node.phase] = (this.counts[node.phase] || 0) + 1;
    this.nodes.set(node.name, node);
    return before;
  }

  childrenOf(name) {
    this.arrange();
    return this.children.get(name) || [];
  }

  startOf(name) {
    return this.nodes.get(name).start ?? Number.MAX_VALUE;
  }

  /** Arrange again if actions came: each once, below its parent, in the order of their start. */
  arrange() {
    if (!this.isStale) return;
    this.isStale = false;
    this.children = new Map();
    const tops = [];
    for (const node of this.nodes.values()) {
      const parent = node.parent !== node.name && this.nodes.has(node.parent) ? node.parent : null;
      if (parent === null) {
        // Its parent may be among those to come: until then it has no place.
        if (this.isComplete || node.parent === "") tops.push(node.name);
      } else if (this.children.has(parent)) this.children.get(parent).push(node.name);
      else this.children.set(parent, [node.name]);
    }
    const byStart = (a, b) => this.startOf(a) - this.startOf(b) || compareNames(a, b);
    // The service sends them in the order of their start, mostly.
    const inOrder = (names) => names.every((name, at) => at === 0 || byStart(names[at - 1], name) < 0);
    for (const names of [...this.children.values(), tops]) if (!inOrder(names)) names.sort(byStart);
    this.order = [];
    const seen = new Set();
    const walk = (start) => {
      const stack = [[start, 0]];
      while (stack.length > 0) {
        const [name, depth] = stack.pop();
        if (seen.has(name)) continue;
        seen.add(name);
        this.order.push({ name, depth });
        const below = this.children.get(name) || [];
        for (let at = below.length - 1; at >= 0; at -= 1) stack.push([below[at], depth + 1]);
      }
    };
    tops.forEach(walk);
    // Parents that go round are below no root: each is shown at the top, once.
    if (this.isComplete && seen.size < this.nodes.size) for (const name of this.nodes.keys()) if (!seen.has(name)) walk(name);
  }

  /**
   * The rows to show: without those below a collapsed action or, with a filter, the matching ones and
   * what is above them.
   */
  rows(collapsed, matches) {
    this.arrange();
    const rows = [];
    if (matches !== null) {
      const kept = new Set();
      for (const node of this.nodes.values()) {
        if (!matches(node)) continue;
        for (let name = node.name; name !== "" && !kept.has(name) && this.nodes.has(name); name = this.nodes.get(name).parent) kept.add(name);
      }
      for (const { name, depth } of this.order) {
        if (!kept.has(name)) continue;
        const node = this.nodes.get(name);
        rows.push({ name, depth, isOpen: true, hasChildren: false, isContext: !matches(node) });
      }
      return rows;
    }
    let below = Infinity;
    for (const { name, depth } of this.order) {
      if (depth > below) continue;
      below = Infinity;
      const hasChildren = this.children.has(name);
      const isOpen = !collapsed.has(name);
      if (hasChildren && !isOpen) below = depth;
      rows.push({ name, depth, isOpen, hasChildren, isContext: false });
    }
    return rows;
  }

  /** The number of actions that have ended. */
  get ended() {
    return Object.entries(this.counts).reduce((sum, [phase, count]) => sum + (isTerminal(phase) ? count : 0), 0);
  }

  /** The first start and the last end; what runs lasts until now. */
  span(now) {
    let first = Infinity;
    let last = -Infinity;
    for (const node of this.nodes.values()) {
      if (node.start === null) continue;
      first = Math.min(first, node.start);
      last = Math.max(last, endOf(node, now));
    }
    return first === Infinity ? null : [first, Math.max(last, first + 1)];
  }

  /**
   * The critical path: from the root down, the child that ended last, then the one that ended last before
   * that began, and so on. What is not on it could have taken a little longer without delaying the run.
   */
  criticalPath(now) {
    this.arrange();
    const found = new Set();
    const stack = this.order.length > 0 && this.root !== null ? ["a0"] : [];
    while (stack.length > 0) {
      const name = stack.pop();
      if (found.has(name)) continue;
      found.add(name);
      const below = [];
      for (const each of this.children.get(name) || []) {
        const node = this.nodes.get(each);
        if (node.start !== null) below.push({ name: each, start: node.start, end: endOf(node, now) });
      }
      below.sort((a, b) => b.end - a.end || a.start - b.start);
      let before = Infinity;
      for (const { name: each, start, end } of below) {
        if (end > before) continue;
        stack.push(each);
        before = start;
      }
    }
    return found;
  }
}

export function endOf(node, now) {
  if (node.end !== null) return node.end;
  return isTerminal(node.phase) ? (node.start ?? now) : Math.max(now, node.start ?? now);
}
