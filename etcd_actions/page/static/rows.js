// Virtual rows: only those in view are in the document, however many there are.
import { batched, h, setAttribute } from "./dom.js";

const SPARE = 6;

/**
 * A scrolling list of rows of one height below a head, with the keyboard of a grid.
 *
 * `key(row)` is a unique text; `make()` makes an element, and `update(element, row, index)` shows a row in
 * it; `open(row)` is Enter or a click; `keys` has more handlers by the name of a key: they take the row, and
 * return whether they used it.
 */
export class Rows {
  constructor({ role, label, head, rowHeight, key, make, update, open, keys = {}, onScroll = () => {}, drawn = () => {} }) {
    Object.assign(this, { rowHeight, key, make, update, open, keys, onScroll, drawn });
    this.rows = [];
    this.indexes = new Map();
    this.shown = new Map();
    this.free = [];
    // As the browser last reported them: to read them after a change would lay the document out at once.
    this.scrolled = 0;
    this.height = 0;
    this.current = null;
    this.id = `rows-${(Rows.made += 1)}`;
    this.spacer = h("div", { class: "spacer", role: "presentation" });
    this.element = h("div", { class: "rows", role: "rowgroup", tabindex: "-1" }, this.spacer);
    this.frame = h("div", { class: "grid", role, "aria-label": label, tabindex: "0" }, head, this.element);
    this.draw = batched(() => this.drawNow());
    this.element.addEventListener("scroll", () => {
      this.scrolled = this.element.scrollTop;
      this.draw();
      this.onScroll();
    });
    this.frame.addEventListener("keydown", (event) => this.pressed(event));
    this.frame.addEventListener("focus", () => this.selectFirst());
    this.element.addEventListener("click", (event) => {
      const element = event.target.closest("[data-key]");
      if (element === null || event.target.closest("a, button")) return;
      const index = this.indexes.get(element.dataset.key);
      if (index === undefined) return;
      this.select(element.dataset.key);
      this.open(this.rows[index]);
    });
    this.resized = new ResizeObserver(([{ contentRect }]) => {
      this.height = contentRect.height;
      this.draw();
    });
    this.resized.observe(this.element);
  }

  /** Show other rows; what is in view keeps its elements and its place. */
  set(rows) {
    const top = this.rows[this.firstInView()];
    const inside = this.scrolled % this.rowHeight;
    const isScrolled = this.scrolled > 0;
    this.rows = rows;
    this.indexes = new Map(rows.map((row, index) => [this.key(row), index]));
    setAttribute(this.frame, "aria-rowcount", String(rows.length));
    if (document.activeElement === this.frame) this.selectFirst();
    this.spacer.style.height = `${rows.length * this.rowHeight}px`;
    if (isScrolled && top !== undefined) {
      const index = this.indexes.get(this.key(top));
      if (index !== undefined) this.scrollTo(index * this.rowHeight + inside);
    }
    this.draw();
  }

  scrollTo(top) {
    if (Math.abs(top - this.scrolled) < 1) return;
    this.element.scrollTop = top;
    this.scrolled = this.element.scrollTop;
  }

  /** Where the keyboard begins. */
  selectFirst() {
    if (this.current === null && this.rows.length > 0) this.select(this.key(this.rows[this.firstInView()]));
  }

  firstInView() {
    return Math.min(Math.max(0, Math.floor(this.scrolled / this.rowHeight)), Math.max(0, this.rows.length - 1));
  }

  drawNow() {
    const first = Math.max(0, Math.floor(this.scrolled / this.rowHeight) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.scrolled + this.height) / this.rowHeight) + SPARE);
    const wanted = new Set();
    for (let index = first; index < last; index += 1) wanted.add(this.key(this.rows[index]));
    for (const [key, element] of this.shown) {
      if (wanted.has(key)) continue;
      this.shown.delete(key);
      this.free.push(element);
    }
    for (let index = first; index < last; index += 1) {
      const row = this.rows[index];
      const key = this.key(row);
      let element = this.shown.get(key);
      if (element === undefined) {
        element = this.free.pop() || this.fresh();
        element.dataset.key = key;
        this.shown.set(key, element);
      }
      const place = `translateY(${index * this.rowHeight}px)`;
      if (element.style.transform !== place) element.style.transform = place;
      setAttribute(element, "id", `${this.id}-${index}`);
      setAttribute(element, "aria-rowindex", String(index + 1));
      setAttribute(element, "aria-selected", key === this.current ? "true" : "false");
      element.classList.toggle("current", key === this.current);
      this.update(element, row, index);
    }
    for (const element of this.free.splice(0)) element.remove();
    const current = this.current === null ? undefined : this.indexes.get(this.current);
    const isThere = current !== undefined && current >= first && current < last;
    setAttribute(this.frame, "aria-activedescendant", isThere ? `${this.id}-${current}` : null);
    this.drawn();
  }

  fresh() {
    const element = this.make();
    element.classList.add("row");
    this.spacer.append(element);
    return element;
  }

  /** Make a row the current one, and scroll to it. */
  select(key, { scroll = true } = {}) {
    this.current = key;
    const index = this.indexes.get(key);
    if (index !== undefined && scroll) {
      const top = index * this.rowHeight;
      const bottom = top + this.rowHeight;
      if (top < this.scrolled) this.scrollTo(top);
      else if (bottom > this.scrolled + this.height) this.scrollTo(bottom - this.height);
    }
    this.draw();
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.frame) return;
    if (this.rows.length === 0) return;
    const index = this.current === null ? -1 : (this.indexes.get(this.current) ?? -1);
    const page = Math.max(1, Math.floor(this.height / this.rowHeight) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      const to = Math.min(this.rows.length - 1, Math.max(0, index + moves[event.key]));
      this.select(this.key(this.rows[to]));
    } else if (event.key === "Enter" && index >= 0) this.open(this.rows[index]);
    else if (!(event.key in this.keys) || index < 0 || !this.keys[event.key](this.rows[index])) return;
    event.preventDefault();
  }

  close() {
    this.resized.disconnect();
  }
}
Rows.made = 0;
