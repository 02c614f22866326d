// A box of marks: thousands of instances or tasks on one canvas, a place for each that it keeps as long as it lives.

import { atlas } from "./states.js";
import { oncePerFrame } from "./dom.js";

const SPARE_ROWS = 2; // Room is given in steps, so that boxes do not grow with every instance.
const FEW = 64;
const BUDGET = 8; // ms of drawing per frame, over all boxes

/** Draws what waits for it, some ms per frame. */
const waiting = new Set();
const drawSoon = oncePerFrame(() => {
  const end = performance.now() + BUDGET;
  for (const box of waiting) {
    waiting.delete(box);
    box.draw();
    if (performance.now() > end) break;
  }
  if (waiting.size) drawSoon();
});

export class Marks {
  /**
   * @param looks gives the name of a row's look, `dimmed` whether it is to stand back, `words` how to say it.
   * @param open is called with the row that somebody chose.
   */
  constructor({ looks, dimmed, words, open, tip }) {
    Object.assign(this, { looks, dimmed, words, open, tip });
    this.places = new Map(); // key -> place
    this.rows = []; // place -> row, or undefined where one was
    this.free = [];
    this.pitch = 16;
    this.width = 0;
    this.columns = 1;
    this.lines = 0;
    this.stale = new Set();
    this.all = true;
    this.at = -1;
    this.build();
  }

  build() {
    this.canvas = document.createElement("canvas");
    this.cursor = document.createElement("div");
    this.cursor.className = "cursor";
    this.cursor.hidden = true;
    this.option = document.createElement("div");
    this.option.className = "unseen";
    this.option.setAttribute("role", "option");
    this.option.setAttribute("aria-selected", "true");
    this.option.id = `mark-${Marks.count = (Marks.count ?? 0) + 1}`;
    this.element = document.createElement("div");
    this.element.className = "marks";
    this.element.setAttribute("role", "listbox");
    this.element.tabIndex = -1;
    this.element.append(this.canvas, this.cursor, this.option);
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focus", () => {
      // A click focuses too, but it says itself where it is.
      if (this.element.matches(":focus-visible")) this.go(this.at < 0 ? this.next(-1, 1) : this.at);
    });
    this.element.addEventListener("blur", () => {
      this.cursor.hidden = true;
      this.tip(null);
    });
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.tip(null));
    this.canvas.addEventListener("click", (event) => {
      const place = this.placeAt(event);
      if (place < 0) return;
      this.at = place;
      this.open(this.rows[place], this.element);
    });
  }

  get size() {
    return this.places.size;
  }

  label(text) {
    if (this.element.getAttribute("aria-label") !== text) this.element.setAttribute("aria-label", text);
  }

  set(row) {
    let place = this.places.get(row[0]);
    if (place === undefined) {
      place = this.freePlace();
      this.places.set(row[0], place);
    }
    this.rows[place] = row;
    this.changed(place);
  }

  delete(key) {
    const place = this.places.get(key);
    if (place === undefined) return;
    this.places.delete(key);
    this.rows[place] = undefined;
    this.free.push(place);
    this.changed(place);
    while (this.rows.length && !this.rows[this.rows.length - 1]) this.rows.pop();
    if (!this.rows.length) this.free = [];
  }

  /** A place that became free, the first of them if there are few; else a new one at the end. */
  freePlace() {
    while (this.free.length) {
      const at = this.free.length > FEW ? this.free.length - 1 : this.free.indexOf(Math.min(...this.free));
      const [place] = this.free.splice(at, 1);
      if (place < this.rows.length) return place;
    }
    return this.rows.length;
  }

  changed(place) {
    this.stale.add(place);
    this.soon();
  }

  redraw() {
    this.all = true;
    this.soon();
  }

  resize(width, pitch) {
    if (Math.floor(width) === this.width && pitch === this.pitch) return;
    this.width = Math.floor(width);
    this.pitch = pitch;
    this.redraw();
  }

  soon() {
    waiting.add(this);
    drawSoon();
  }

  draw() {
    if (!this.width) return;
    this.element.tabIndex = this.places.size ? 0 : -1;
    this.arrange();
    const context = this.canvas.getContext("2d");
    const looks = atlas(this.pitch - (this.pitch > 10 ? 4 : 2));
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (this.all) {
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      this.rows.forEach((row, place) => row && this.mark(context, looks, place, row));
    } else {
      for (const place of this.stale) {
        const row = this.rows[place];
        const [x, y] = this.corner(place);
        const s = looks.scale;
        context.clearRect(Math.floor(x * s), Math.floor(y * s), Math.ceil(this.pitch * s), Math.ceil(this.pitch * s));
        if (row) this.mark(context, looks, place, row);
      }
    }
    this.all = false;
    this.stale.clear();
    if (!this.cursor.hidden) this.go(this.at);
  }

  /** Make room. Lines are only given back when half of them are not needed. */
  arrange() {
    const columns = Math.max(1, Math.floor(this.width / this.pitch));
    const needed = Math.ceil(this.rows.length / columns);
    const lines = needed > this.lines || needed < this.lines / 2 || columns !== this.columns
      ? Math.max(1, Math.ceil(needed / SPARE_ROWS) * SPARE_ROWS) : this.lines;
    const scale = window.devicePixelRatio || 1;
    const width = Math.ceil(this.width * scale), height = Math.ceil(lines * this.pitch * scale);
    if (this.canvas.width === width && this.canvas.height === height && columns === this.columns) return;
    this.columns = columns;
    this.lines = lines;
    this.canvas.width = width;
    this.canvas.height = height;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${lines * this.pitch}px`;
    this.all = true;
  }

  corner(place) {
    return [(place % this.columns) * this.pitch, Math.floor(place / this.columns) * this.pitch];
  }

  mark(context, looks, place, row) {
    const from = looks.places.get(this.looks(row));
    if (from === undefined) return;
    const [x, y] = this.corner(place);
    const { cell, scale } = looks;
    const dim = this.dimmed(row) ? cell : 0;
    context.drawImage(looks.picture, from, dim, cell, cell, Math.round(x * scale), Math.round(y * scale), cell, cell);
  }

  placeAt(event) {
    const column = Math.floor(event.offsetX / this.pitch), line = Math.floor(event.offsetY / this.pitch);
    const place = line * this.columns + column;
    return column < this.columns && this.rows[place] ? place : -1;
  }

  hover(event) {
    const place = this.placeAt(event);
    this.canvas.style.cursor = place < 0 ? "" : "pointer";
    this.tip(place < 0 ? null : this.words(this.rows[place]), event.clientX, event.clientY);
  }

  /** The next taken place from `place` in steps; the place itself if there is none. */
  next(place, step) {
    for (let at = place + step; at >= 0 && at < this.rows.length; at += step) if (this.rows[at]) return at;
    return place;
  }

  key(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns };
    if (event.key in steps) this.go(this.next(this.at, steps[event.key]));
    else if (event.key === "Home") this.go(this.next(-1, 1));
    else if (event.key === "End") this.go(this.next(this.rows.length, -1));
    else if ((event.key === "Enter" || event.key === " ") && this.rows[this.at]) this.open(this.rows[this.at], this.element);
    else return;
    event.preventDefault();
  }

  go(place) {
    const row = this.rows[place];
    this.cursor.hidden = !row;
    if (!row) {
      if (place >= 0 && this.size) this.go(this.next(-1, 1));
      return;
    }
    this.at = place;
    const [x, y] = this.corner(place);
    Object.assign(this.cursor.style, {
      transform: `translate(${x - 3}px, ${y - 3}px)`, width: `${this.pitch + 2}px`, height: `${this.pitch + 2}px`,
    });
    const text = this.words(row);
    if (this.option.textContent !== text) this.option.textContent = text;
    this.element.setAttribute("aria-activedescendant", this.option.id);
    const rect = this.cursor.getBoundingClientRect();
    this.tip(text, rect.right, rect.bottom);
    this.cursor.scrollIntoView({ block: "nearest" });
  }
}
