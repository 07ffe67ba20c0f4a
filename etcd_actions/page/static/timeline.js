// The timeline: which part of a run's time is in view, its axis, and the place of each bar.
import { duration, when, iso } from "./format.js";
import { h, setAttribute } from "./dom.js";

const STEPS = [
  1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 10e3, 15e3, 30e3, 60e3, 120e3, 300e3, 600e3, 900e3, 1800e3, 3600e3,
  7200e3, 14400e3, 21600e3, 43200e3, 86400e3, 172800e3, 604800e3,
];
const SHORTEST = 5;

export class Timeline {
  constructor(onChange) {
    this.onChange = onChange;
    this.span = [0, 1];
    this.view = null;
    this.width = 300;
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.tools = h(
      "div",
      { class: "zoom", role: "group", "aria-label": "Zoom of the timeline" },
      h("button", { type: "button", title: "Zoom out (−)", "aria-label": "Zoom out", on: { click: () => this.zoom(2) } }, "−"),
      h("button", { type: "button", title: "All of it (0)", on: { click: () => this.fit() } }, "Fit"),
      h("button", { type: "button", title: "Zoom in (+)", "aria-label": "Zoom in", on: { click: () => this.zoom(0.5) } }, "+"),
    );
  }

  /** The first and the last millisecond in view. */
  get range() {
    return this.view || this.span;
  }

  setSpan(span) {
    this.span = span;
  }

  fit() {
    this.view = null;
    this.onChange();
  }

  /** Zoom around a place, from 0 (left) to 1. */
  zoom(factor, around = 0.5) {
    const [from, to] = this.range;
    const length = Math.max(SHORTEST, (to - from) * factor);
    if (length >= this.span[1] - this.span[0]) {
      this.fit();
      return;
    }
    const at = from + (to - from) * around;
    this.move(at - length * around, length);
  }

  pan(part) {
    if (this.view === null) return;
    const [from, to] = this.view;
    this.move(from + (to - from) * part, to - from);
  }

  /** Zoom to some actions. */
  show(from, to) {
    const room = Math.max(SHORTEST, (to - from) * 0.1);
    this.move(from - room, to - from + 2 * room);
  }

  move(from, length) {
    const start = Math.max(this.span[0], Math.min(from, this.span[1] - length));
    this.view = [start, start + length];
    this.onChange();
  }

  /** The left edge and the width of a bar, in percent; null if it is out of view. */
  place(start, end) {
    const [from, to] = this.range;
    if (end < from || start > to) return null;
    const scale = 100 / (to - from);
    const left = Math.max(0, (start - from) * scale);
    return [left, Math.max(0, Math.min(100, (end - from) * scale) - left)];
  }

  drawAxis() {
    const [from, to] = this.range;
    const most = Math.max(2, Math.floor(this.width / 90));
    const step = STEPS.find((each) => (to - from) / each <= most) || STEPS[STEPS.length - 1] * Math.ceil((to - from) / STEPS[STEPS.length - 1] / most);
    const origin = this.span[0];
    const ticks = [];
    for (let at = origin + Math.ceil((from - origin) / step) * step; at <= to; at += step) {
      const tick = h("span", { class: "tick", title: iso(at) }, at === origin ? when(at) : `+${duration(at - origin).replace(/ 0[0]? (?:ms|s|m|h)$/, "").replace(".0 s", " s")}`);
      const left = ((at - from) / (to - from)) * 100;
      tick.style.left = `${left}%`;
      if (left > 88) tick.classList.add("last");
      ticks.push(tick);
    }
    this.axis.replaceChildren(...ticks);
    setAttribute(this.axis, "data-step", String(step));
  }
}
