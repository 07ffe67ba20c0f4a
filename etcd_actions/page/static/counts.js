// How many actions of each run have ended: of the runs in view, as they change.
import { follow, stream } from "./connect.js";
import { isTerminal } from "./format.js";

const MOST = 200;
const PAUSE = 150;
const BETWEEN = 1000;

export class Counts {
  /** `changed()` is called after each change, until `signal` is aborted. */
  constructor(signal, changed) {
    Object.assign(this, { signal, changed });
    this.counts = new Map();
    this.needed = [];
    // The runs that the present stream counts.
    this.followed = new Set();
    this.attempt = null;
    this.timer = 0;
    this.openedAt = -Infinity;
    this.isServed = true;
    signal.addEventListener("abort", () => this.close());
  }

  /** The numbers of a run; undefined without an action, and before they are there. */
  of(run) {
    const count = this.counts.get(run.key);
    return count?.actions > 0 ? count : undefined;
  }

  /** Follow the counts of these runs, except those that cannot change. */
  need(runs) {
    if (!this.isServed) return;
    this.needed = runs.filter((run) => !this.isFinal(run)).slice(0, MOST);
    if (this.needed.length === 0) this.close();
    if (this.timer !== 0 || this.needed.every((run) => this.followed.has(run.key))) return;
    // While one scrolls, and while runs start, one stream a second is enough.
    const wait = Math.max(PAUSE, this.openedAt + BETWEEN - performance.now());
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.open(this.needed);
    }, wait);
  }

  isFinal(run) {
    const count = this.counts.get(run.key);
    return count !== undefined && isTerminal(run.phase) && count.ended === count.actions;
  }

  /** Follow none. */
  close() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.attempt?.abort();
    this.followed.clear();
  }

  open(runs) {
    this.close();
    if (this.signal.aborted) return;
    this.openedAt = performance.now();
    this.followed = new Set(runs.map((run) => run.key));
    const attempt = (this.attempt = new AbortController());
    const request = { runs: runs.map(({ project, domain, name }) => ({ project, domain, run: name })) };
    follow({
      signal: attempt.signal,
      open: (stop) => stream("etcd_actions.operations.Operations/WatchCounts", request, { signal: stop }),
      report: (how, error) => {
        // Another service has no such method.
        if (how === "failed" && error.code === "unimplemented") this.isServed = false;
      },
      each: (message) => {
        for (const { run, ended = 0, actions = 0 } of message.runs || []) {
          this.counts.set(JSON.stringify([run.project, run.domain, run.run]), { ended, actions });
        }
        if (message.runs?.length > 0) this.changed();
      },
    });
  }
}
