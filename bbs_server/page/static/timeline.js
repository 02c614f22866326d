// The time line of events, newest first. It holds still while somebody reads it.

import { byId, clock, el, number, setText, oncePerFrame } from "./dom.js";
import { glyph, LOOKS, spoken } from "./states.js";
import { E } from "./store.js";

const SHOWN = 150;

export class TimeLine {
  constructor(store, open) {
    this.list = byId("line");
    this.more = byId("line-more");
    this.waiting = [];
    this.isRead = false;
    this.open = open;
    this.soon = oncePerFrame(() => this.show());
    store.on("begin", () => { this.waiting = []; this.list.replaceChildren(); this.soon(); });
    store.on("entries", (entries) => {
      this.waiting.push(...entries);
      this.waiting.splice(0, this.waiting.length - SHOWN);
      this.unseen = (this.unseen ?? 0) + entries.length;
      this.soon();
    });
    const reads = (value) => () => { this.isRead = value; this.soon(); };
    this.list.addEventListener("pointerenter", reads(true));
    this.list.addEventListener("pointerleave", reads(false));
    this.list.addEventListener("focusin", reads(true));
    this.list.addEventListener("focusout", reads(false));
    this.list.addEventListener("scroll", this.soon);
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) open(button.dataset.subject, button.dataset.guid, button);
    });
    this.more.addEventListener("click", () => {
      this.list.scrollTop = 0;
      this.show(true);
    });
  }

  get holds() {
    return this.isRead || this.list.scrollTop > 4;
  }

  show(anyway = false) {
    const held = this.holds && !anyway && this.list.childElementCount > 0;
    this.more.hidden = !held || !this.waiting.length;
    if (held) {
      setText(this.more, `${number(this.unseen ?? 0)} new`);
      return;
    }
    this.unseen = 0;
    if (!this.waiting.length) return;
    const fresh = document.createDocumentFragment();
    for (const entry of this.waiting.reverse()) fresh.append(item(entry));
    this.waiting = [];
    this.list.prepend(fresh);
    while (this.list.childElementCount > SHOWN) this.list.lastElementChild.remove();
    if (!this.list.querySelector('[tabindex="0"]')) this.list.querySelector("button")?.setAttribute("tabindex", "0");
  }

  key(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = event.target.closest("li")?.[step]?.querySelector("button");
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** What is opened for an entry, and how it looks. */
function item(entry) {
  const [, at, subject, guid, index, what, cell, text] = entry;
  const kind = { task: "task", instance: "lrp", lrp: "lrp", cell: "cell", domain: "domain" }[subject] ?? subject;
  const name = index === null ? guid : `${guid}/${index}`;
  const where = cell && subject !== "cell" ? cell : "";
  return el("li", { class: `entry ${subject} ${what}` },
    el("button", {
      type: "button", tabindex: "-1", "data-subject": kind, "data-guid": guid, disabled: subject === "domain",
      title: [name, what, where && `on ${where}`, text].filter(Boolean).join(" · "),
    },
    el("time", { datetime: new Date(at).toISOString() }, clock(at)),
    symbol(entry), el("span", { class: "subject" }, el("span", { class: "guid" }, guid), index === null ? null : `/${index}`), el("span", { class: "what" }, words(entry))));
}

export function symbol(entry) {
  const look = `${entry[E.subject]}-${entry[E.what]}`;
  return LOOKS.includes(look) ? glyph(look, 9) : el("span", { class: "glyph blank", "aria-hidden": "true" }, "·");
}

export function words(entry) {
  const what = spoken(entry[E.what]);
  const where = entry[E.cell] && entry[E.subject] !== "cell" ? ` · ${entry[E.cell]}` : "";
  const subject = { cell: "cell ", domain: "domain ", lrp: "" }[entry[E.subject]] ?? "";
  const text = entry[E.text] && entry[E.subject] !== "cell" ? ` · ${entry[E.text]}` : "";
  return `${subject}${what}${where}${text}`;
}
