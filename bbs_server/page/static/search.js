// Search: what matches stands out in the picture, and the best matches can be opened.

import { byId, el, settled } from "./dom.js";
import { I, L, T } from "./store.js";

const SHOWN = 12;

export class Search {
  constructor(store, filter, open) {
    this.store = store;
    this.filter = filter;
    this.open = open;
    this.input = byId("search");
    this.list = byId("found");
    this.at = -1;
    const soon = settled(() => this.search(), 80);
    this.input.addEventListener("input", soon);
    this.input.addEventListener("focus", () => this.search());
    this.input.addEventListener("blur", () => setTimeout(() => this.hide(), 150));
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const item = event.target.closest("li[data-kind]");
      if (item) this.choose(item);
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, textarea");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.input.focus();
      this.input.select();
    });
  }

  search() {
    const text = this.input.value.trim().toLowerCase();
    if (text !== this.filter.text) {
      this.filter.text = text;
      this.filter.changed();
    }
    if (!text || document.activeElement !== this.input) return this.hide();
    const found = this.matches(text);
    this.list.replaceChildren(...(found.length ? found.map(([kind, guid, hint], place) => el("li", {
      role: "option", id: `found-${place}`, "data-kind": kind, "data-guid": guid, "aria-selected": "false",
    }, el("span", { class: "kind" }, kind), el("span", { class: "guid" }, guid), el("small", {}, hint)))
      : [el("li", { class: "nothing" }, "nothing found")]));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.mark(found.length ? 0 : -1);
  }

  matches(text) {
    const found = [];
    const has = (value) => value.toLowerCase().includes(text);
    const add = (kind, guid, hint) => found.length < SHOWN && found.push([kind, guid, hint]);
    for (const name of this.store.cells.keys()) if (has(name)) add("cell", name, "");
    const seen = new Set();
    for (const row of this.store.lrps.values()) {
      if (!has(row[L.guid]) && !has(row[L.domain])) continue;
      seen.add(row[L.guid]);
      add("lrp", row[L.guid], `${row[L.instances]} × · ${row[L.domain]}`);
      if (found.length >= SHOWN) return found;
    }
    for (const row of this.store.tasks.values()) {
      if (has(row[T.guid]) || has(row[T.domain]) || has(row[T.cell])) add("task", row[T.guid], `${row[T.state]} · ${row[T.domain]}`);
      if (found.length >= SHOWN) return found;
    }
    for (const row of this.store.instances.values()) {
      if (seen.has(row[I.guid]) || !(has(row[I.guid]) || has(row[I.domain]) || has(row[I.cell]))) continue;
      seen.add(row[I.guid]);
      add("lrp", row[I.guid], row[I.domain]);
      if (found.length >= SHOWN) return found;
    }
    return found;
  }

  hide() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  mark(place) {
    this.at = place;
    [...this.list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === place)));
    const item = this.list.children[place];
    if (item?.id) this.input.setAttribute("aria-activedescendant", item.id);
  }

  key(event) {
    const count = this.list.querySelectorAll("li[data-kind]").length;
    if (event.key === "ArrowDown" && count) this.mark((this.at + 1) % count);
    else if (event.key === "ArrowUp" && count) this.mark((this.at + count - 1) % count);
    else if (event.key === "Enter") {
      this.search();
      const item = this.list.children[Math.max(0, this.at)];
      if (item?.dataset.kind) this.choose(item);
    } else if (event.key === "Escape") {
      this.input.value = "";
      this.search();
      this.input.blur();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  choose(item) {
    this.open(item.dataset.kind, item.dataset.guid, this.input);
    this.hide();
  }
}
