// Totals by state. They are the legend and, pressed, a filter.

import { byId, el, number, setText } from "./dom.js";
import { INSTANCE_STATES, TASK_STATES, glyph, spoken } from "./states.js";
import { I, T } from "./store.js";
import { Counts } from "./boxes.js";

export class Overview {
  constructor(store, filter) {
    this.filter = filter;
    this.totals = { instance: new Counts(), task: new Counts() };
    this.chips = [
      ...this.row("instance", "Instances", INSTANCE_STATES),
      ...this.row("task", "Tasks", TASK_STATES),
    ];
    store.on("row", (table, before, row) => {
      if (table === "instances") this.count("instance", before?.[I.state], row?.[I.state]);
      else if (table === "tasks") this.count("task", before?.[T.state], row?.[T.state]);
    });
    store.on("begin", () => { this.totals = { instance: new Counts(), task: new Counts() }; });
    store.on("batch", () => this.show());
    this.show();
  }

  row(subject, title, states) {
    const host = byId(`${subject}-chips`);
    host.append(el("span", { class: "chips-title" }, title));
    return states.map((state) => {
      const value = el("b", {}, "0");
      const button = el("button", {
        class: "chip", type: "button", "aria-pressed": "false", "data-state": state,
        onclick: () => this.press(subject, state),
      }, glyph(`${subject}-${state}`), el("span", {}, spoken(state)), value);
      host.append(button);
      return { subject, state, value, button };
    });
  }

  press(subject, state) {
    const look = `${subject}-${state}`;
    this.filter.look = this.filter.look === look ? "" : look;
    for (const chip of this.chips) {
      chip.button.setAttribute("aria-pressed", String(`${chip.subject}-${chip.state}` === this.filter.look));
    }
    this.filter.changed();
  }

  count(subject, before, after) {
    if (before === after) return;
    if (before) this.totals[subject].add(before, -1);
    if (after) this.totals[subject].add(after, 1);
  }

  show() {
    for (const { subject, state, value, button } of this.chips) {
      const count = this.totals[subject].get(state);
      setText(value, number(count));
      button.classList.toggle("none", !count);
    }
  }
}
