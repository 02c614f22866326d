// Domains and whether they are fresh.

import { age, byId, el, number, oncePerFrame, setText } from "./dom.js";
import { D } from "./store.js";

const SHOWN = 100;

export class Domains {
  constructor(store) {
    this.store = store;
    this.list = byId("domains");
    this.soon = oncePerFrame(() => this.show());
    store.on("row", (table) => table === "domains" && this.soon());
    store.on("begin", this.soon);
    setInterval(this.soon, 10_000);
  }

  show() {
    const rows = [...this.store.domains.values()].sort((a, b) => a[D.fresh] - b[D.fresh] || (a[D.name] < b[D.name] ? -1 : 1));
    const fresh = rows.filter((row) => row[D.fresh]).length;
    setText(byId("domains-note"), `${number(fresh)} fresh${fresh < rows.length ? `, ${number(rows.length - fresh)} not` : ""}`);
    const items = rows.slice(0, SHOWN).map((row) => el("li", { class: row[D.fresh] ? "fresh" : "stale" },
      el("span", { class: "sign", "aria-hidden": "true" }, row[D.fresh] ? "●" : "○"),
      el("span", { class: "guid", title: row[D.name] }, row[D.name]),
      el("span", { class: "since" }, `${row[D.fresh] ? "fresh" : "not fresh"} ${age(row[D.since])}`)));
    if (!items.length) items.push(el("li", { class: "nothing" }, "none"));
    this.list.replaceChildren(...items);
  }
}
