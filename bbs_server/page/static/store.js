// What the browser knows of the fleet. Messages change maps of rows; views hear which rows changed.

// Places in rows, as model.py has them.
export const I = { id: 0, guid: 1, index: 2, domain: 3, state: 4, cell: 5, since: 6, crashes: 7, note: 8 };
export const T = { guid: 0, domain: 1, state: 2, cell: 3, created: 4, updated: 5, note: 6 };
export const L = { guid: 0, domain: 1, instances: 2 };
export const C = { name: 0, present: 1, zone: 2, memory: 3, disk: 4, containers: 5, since: 6 };
export const D = { name: 0, fresh: 1, since: 2 };
export const E = { number: 0, at: 1, subject: 2, guid: 3, index: 4, what: 5, cell: 6, text: 7 };

const TABLES = ["cells", "domains", "lrps", "instances", "tasks"];
const POINTS = 300;

export class Store {
  constructor() {
    this.listeners = { row: [], entries: [], points: [], status: [], begin: [], ready: [], link: [], batch: [] };
    this.status = {};
    this.clear();
  }

  on(what, listener) {
    this.listeners[what].push(listener);
  }

  tell(what, ...values) {
    for (const listener of this.listeners[what]) listener(...values);
  }

  clear() {
    for (const name of TABLES) this[name] = new Map();
    this.points = [];
    this.lastEntry = 0;
    this.isReady = false;
  }

  connect() {
    const source = new EventSource("/api/stream");
    source.addEventListener("begin", () => {
      this.clear();
      this.tell("begin");
    });
    source.addEventListener("change", (event) => this.change(JSON.parse(event.data)));
    source.addEventListener("ready", () => {
      this.isReady = true;
      this.tell("ready");
      this.tell("link", true);
    });
    source.addEventListener("error", () => this.tell("link", false));
  }

  change(message) {
    for (const name of TABLES) {
      const table = this[name];
      for (const key of message[`${name}_gone`] ?? []) {
        const before = table.get(key);
        if (before === undefined) continue;
        table.delete(key);
        this.tell("row", name, before, undefined);
      }
      for (const row of message[name] ?? []) {
        const before = table.get(row[0]);
        table.set(row[0], row);
        this.tell("row", name, before, row);
      }
    }
    if (message.entries) this.addEntries(message.entries);
    if (message.points) this.addPoints(message.points);
    if (message.status) {
      this.status = message.status;
      this.tell("status", this.status);
    }
    this.tell("batch");
  }

  addEntries(entries) {
    const fresh = entries.filter((entry) => entry[E.number] > this.lastEntry);
    if (!fresh.length) return;
    this.lastEntry = fresh[fresh.length - 1][E.number];
    this.tell("entries", fresh);
  }

  addPoints(points) {
    const last = this.points.length ? this.points[this.points.length - 1][0] : 0;
    this.points.push(...points.filter((point) => point[0] > last));
    this.points.splice(0, this.points.length - POINTS);
    this.tell("points");
  }
}
