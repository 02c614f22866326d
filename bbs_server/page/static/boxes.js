// Boxes with a head and marks: cells with their instances, task states with their tasks.

import { byId, el, number, plural, setText, settled } from "./dom.js";
import { INSTANCE_STATES, TASK_STATES, spoken } from "./states.js";
import { C, I, T } from "./store.js";
import { Marks } from "./marks.js";

const PITCHES = [[120, 18], [340, 13], [1300, 10], [Infinity, 8]]; // marks in the fullest box -> px per mark
const WAITING = "";

export class Counts {
  constructor() {
    this.by = new Map();
  }

  add(state, step) {
    this.by.set(state, (this.by.get(state) ?? 0) + step);
  }

  get(state) {
    return this.by.get(state) ?? 0;
  }

  words(order) {
    return order.filter((state) => this.get(state)).map((state) => `${number(this.get(state))} ${spoken(state)}`).join(", ");
  }
}

class Box {
  constructor(name, marks, { title, titleClick }) {
    this.name = name;
    this.marks = marks;
    this.counts = new Counts();
    this.title = titleClick ? el("button", { class: "name", type: "button", onclick: titleClick }, title)
      : el("span", { class: "name" }, title);
    this.badge = el("span", { class: "badge" });
    this.total = el("span", { class: "total" }, "0");
    this.words = el("p", { class: "words" });
    this.buttons = el("span", { class: "box-buttons" });
    this.head = el("div", { class: "head" }, this.title, this.badge, this.total, this.buttons);
    this.element = el("article", { class: "box", "aria-label": title }, this.head, this.words, marks.element);
  }

  say(total, words) {
    setText(this.total, number(total));
    setText(this.words, words || "\u00a0");
  }
}

/** Boxes of one grid: they share a width and a size of marks. */
class Grid {
  constructor(host, settings) {
    this.host = host;
    this.settings = settings;
    this.boxes = new Map();
    this.pitch = PITCHES[0][1];
    this.changed = new Set();
    this.fitSoon = settled(() => this.fit(), 30);
    new ResizeObserver(() => this.fit()).observe(host);
  }

  box(name) {
    let box = this.boxes.get(name);
    if (!box) {
      box = this.make(name);
      box.key = this.order(name);
      this.boxes.set(name, box);
      const after = [...this.boxes.values()].filter((other) => other.key > box.key)
        .sort((a, b) => (a.key < b.key ? -1 : 1))[0];
      this.host.insertBefore(box.element, after ? after.element : null);
      this.fitSoon();
    }
    return box;
  }

  remove(name) {
    const box = this.boxes.get(name);
    if (!box) return;
    box.element.remove();
    this.boxes.delete(name);
  }

  /** One pitch for all, chosen by the fullest box; a smaller one at once, a larger one only when well below. */
  fit() {
    const fullest = Math.max(0, ...[...this.boxes.values()].map((box) => box.marks.size));
    const wanted = PITCHES.find(([most]) => fullest <= most)[1];
    const relaxed = PITCHES.find(([most]) => fullest * 1.6 <= most)[1];
    this.pitch = wanted < this.pitch ? wanted : Math.max(this.pitch, relaxed);
    const widths = [...this.boxes.values()].map((box) => box.marks.element.clientWidth);
    [...this.boxes.values()].forEach((box, place) => box.marks.resize(widths[place], this.pitch));
  }

  redraw() {
    for (const box of this.boxes.values()) box.marks.redraw();
  }

  clear() {
    for (const name of [...this.boxes.keys()]) this.remove(name);
    this.pitch = PITCHES[0][1];
  }
}

export class Cells extends Grid {
  constructor(store, settings) {
    super(byId("cells"), settings);
    this.store = store;
    this.tasksOn = new Map();
    store.on("row", (table, before, row) => {
      if (table === "instances") this.instance(before, row);
      else if (table === "cells") this.cell(before, row);
      else if (table === "tasks") this.task(before, row);
    });
    store.on("batch", () => this.tellAll());
    store.on("begin", () => { this.clear(); this.tasksOn.clear(); this.box(WAITING); });
    store.on("status", () => this.parts());
    this.box(WAITING);
  }

  order(name) {
    // cell-2 before cell-10, and what waits first.
    return name === WAITING ? "" : `.${name.replace(/\d+/g, (digits) => digits.padStart(9, "0"))}`;
  }

  make(name) {
    const marks = new Marks({
      looks: (row) => `instance-${row[I.state]}`,
      words: instanceWords,
      dimmed: this.settings.dimmed.instance,
      open: (row, from) => this.settings.open("lrp", row[I.guid], from),
      tip: this.settings.tip,
    });
    const isCell = name !== WAITING;
    const box = new Box(name, marks, {
      title: isCell ? name : "Waiting for a cell",
      titleClick: isCell ? (event) => this.settings.open("cell", name, event.currentTarget) : null,
    });
    box.element.classList.toggle("waiting", !isCell);
    box.element.dataset.cell = name;
    this.changed.add(name);
    return box;
  }

  instance(before, row) {
    const from = before?.[I.cell], to = row?.[I.cell];
    if (before) {
      const box = this.box(from);
      box.counts.add(before[I.state], -1);
      if (!row || from !== to) box.marks.delete(before[I.id]);
      this.changed.add(from);
    }
    if (row) {
      const box = this.box(to);
      box.counts.add(row[I.state], 1);
      box.marks.set(row);
      this.changed.add(to);
    }
  }

  cell(before, row) {
    const name = (row ?? before)[C.name];
    if (row) this.box(name);
    this.changed.add(name);
  }

  task(before, row) {
    for (const [task, step] of [[before, -1], [row, 1]]) {
      if (!task || task[T.state] !== "running" || !task[T.cell]) continue;
      this.tasksOn.set(task[T.cell], (this.tasksOn.get(task[T.cell]) ?? 0) + step);
      this.changed.add(task[T.cell]);
    }
  }

  parts() {
    for (const part of this.store.status.parts ?? []) {
      if (!part.cell) continue;
      this.box(part.name);
      this.changed.add(part.name);
    }
    this.tellAll();
  }

  tellAll() {
    if (!this.changed.size) return;
    for (const name of this.changed) this.tellBox(name);
    this.changed.clear();
    this.fitSoon();
    const present = [...this.store.cells.values()].filter((row) => row[C.present]).length;
    const absent = this.store.cells.size - present;
    setText(byId("cells-note"), `${number(present)} present${absent ? `, ${number(absent)} absent` : ""}`);
  }

  tellBox(name) {
    const box = this.boxes.get(name);
    if (!box) return;
    const row = this.store.cells.get(name);
    const part = (this.store.status.parts ?? []).find((one) => one.cell && one.name === name);
    const tasks = this.tasksOn.get(name) ?? 0;
    if (name !== WAITING && !row && !part && !box.marks.size && !tasks) {
      this.remove(name);
      return;
    }
    const words = box.counts.words(INSTANCE_STATES);
    box.say(box.marks.size, [words, tasks ? plural(tasks, "task") : ""].filter(Boolean).join(" · "));
    const isAbsent = name !== WAITING && !row?.[C.present];
    box.element.classList.toggle("absent", isAbsent);
    const state = part && part.state !== "ready" ? part.state : "";
    setText(box.badge, name === WAITING ? "" : state || (isAbsent ? "absent" : row[C.zone]));
    const what = name === WAITING ? "Instances that wait for a cell" : `Instances on ${name}${isAbsent ? ", absent" : ""}`;
    box.marks.label(`${what}: ${words || "none"}`);
    if (part) this.settings.partButton(box.buttons, part);
  }
}

export class Tasks extends Grid {
  constructor(store, settings) {
    super(byId("tasks"), settings);
    this.store = store;
    store.on("row", (table, before, row) => table === "tasks" && this.task(before, row));
    store.on("batch", () => this.tellAll());
    store.on("begin", () => { this.clear(); this.start(); });
    this.start();
  }

  start() {
    for (const state of TASK_STATES) this.box(state);
  }

  order(name) {
    const place = TASK_STATES.indexOf(name);
    return place < 0 ? TASK_STATES.length : place;
  }

  make(state) {
    const marks = new Marks({
      looks: (row) => `task-${row[T.state]}`,
      words: taskWords,
      dimmed: this.settings.dimmed.task,
      open: (row, from) => this.settings.open("task", row[T.guid], from),
      tip: this.settings.tip,
    });
    const box = new Box(state, marks, { title: state });
    box.element.dataset.state = state;
    box.words.hidden = true;
    this.changed.add(state);
    return box;
  }

  task(before, row) {
    if (before && (!row || before[T.state] !== row[T.state])) {
      this.box(before[T.state]).marks.delete(before[T.guid]);
      this.changed.add(before[T.state]);
    }
    if (row) {
      this.box(row[T.state]).marks.set(row);
      this.changed.add(row[T.state]);
    }
  }

  tellAll() {
    if (!this.changed.size) return;
    for (const state of this.changed) {
      const box = this.boxes.get(state);
      box.say(box.marks.size, "");
      box.marks.label(`Tasks ${state}: ${number(box.marks.size)}`);
    }
    this.changed.clear();
    this.fitSoon();
    setText(byId("tasks-note"), number(this.store.tasks.size));
  }
}

function instanceWords(row) {
  const where = row[I.cell] ? ` on ${row[I.cell]}` : "";
  const crashes = row[I.crashes] ? `, ${plural(row[I.crashes], "crash").replace("crashs", "crashes")}` : "";
  const note = row[I.note] ? `\n${row[I.note]}` : "";
  return `${row[I.guid]}/${row[I.index]}\n${spoken(row[I.state])}${where}${crashes}\ndomain ${row[I.domain]}${note}`;
}

function taskWords(row) {
  const where = row[T.cell] ? ` on ${row[T.cell]}` : "";
  const note = row[T.note] ? `\n${row[T.note]}` : "";
  return `${row[T.guid]}\n${row[T.state]}${where}\ndomain ${row[T.domain]}${note}`;
}
