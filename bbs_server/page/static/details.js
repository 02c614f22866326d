// Details of a task, an LRP or a cell: asked for when opened and whenever something of it changes.

import { age, byId, clock, el, plural, settled } from "./dom.js";
import { glyph, spoken } from "./states.js";
import { E, I, L, T } from "./store.js";
import { symbol, words } from "./timeline.js";

const TITLES = { task: "Task", lrp: "LRP", cell: "Cell", "run-task": "New", desire: "New" };
const LONGEST = 60_000; // characters of a definition
const NANOS = 1e6; // per ms

export class Details {
  constructor(store, actions) {
    this.store = store;
    this.actions = actions;
    this.panel = byId("details");
    this.title = byId("details-title");
    this.body = byId("details-body");
    this.kind = "";
    this.refreshSoon = settled(() => this.refresh(), 150);
    byId("details-close").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.kind) this.close();
    });
    store.on("row", (table, before, row) => this.heed(table, row ?? before));
    store.on("ready", () => this.kind && this.refreshSoon());
    this.body.addEventListener("click", (event) => {
      const link = event.target.closest("[data-open]");
      if (link) this.open(link.dataset.open, link.dataset.guid, this.opener);
    });
  }

  heed(table, row) {
    const mine = { tasks: "task", lrps: "lrp", cells: "cell" }[table];
    if ((mine === this.kind && row[0] === this.guid) || (table === "instances" && this.kind === "lrp" && row[I.guid] === this.guid)) {
      this.refreshSoon();
    }
  }

  async open(kind, guid, opener) {
    if (!this.kind) this.opener = opener ?? document.activeElement;
    this.kind = kind;
    this.guid = guid;
    this.shown = {};
    byId("details-kind").textContent = TITLES[kind] ?? kind;
    this.title.textContent = guid;
    this.panel.hidden = false;
    document.body.classList.add("with-details");
    this.parts = Object.fromEntries(["actions", "facts", "list", "history", "definition"].map((name) => [name, el("section", { class: name })]));
    this.body.replaceChildren(...Object.values(this.parts));
    this.body.scrollTop = 0;
    this.title.focus({ preventScroll: true });
    this.buttons();
    await this.refresh();
  }

  close() {
    this.kind = "";
    this.panel.hidden = true;
    document.body.classList.remove("with-details");
    const opener = this.opener?.isConnected ? this.opener : byId("cells");
    opener.focus({ preventScroll: true });
  }

  async refresh() {
    const { kind, guid } = this;
    if (!["task", "lrp", "cell"].includes(kind)) return;
    let found;
    try {
      const answer = await fetch(`/api/${kind}?guid=${encodeURIComponent(guid)}`);
      found = await answer.json();
    } catch (error) {
      found = { problem: `no answer: ${error.message}` };
    }
    if (kind !== this.kind || guid !== this.guid) return;
    if (found.problem) this.put("facts", { problem: found.problem }, () => [el("p", { class: "problem" }, found.problem)]);
    else this[kind](found);
  }

  /** Build a section anew only if its data changed, so that selections and positions stay. */
  put(name, data, build) {
    const text = JSON.stringify(data);
    if (this.shown[name] === text) return;
    this.shown[name] = text;
    this.parts[name].replaceChildren(...build());
  }

  task({ task, history }) {
    const row = this.store.tasks.get(this.guid);
    const state = row?.[T.state] ?? "";
    this.put("facts", [task && { ...task, task_definition: 0 }, state], () => (task ? [facts([
      ["State", [glyph(`task-${state}`), ` ${state}`]],
      ["Domain", task.domain],
      ["Cell", task.cell_id && link("cell", task.cell_id)],
      ["Created", time(task.created_at)],
      ["Updated", time(task.updated_at)],
      ["Completed", task.first_completed_at && time(task.first_completed_at)],
      ["Failure", task.failure_reason],
      ["Rejections", task.rejection_count ? `${task.rejection_count}: ${task.rejection_reason}` : ""],
      ["Result", task.result && el("pre", {}, task.result)],
    ])] : [el("p", { class: "problem" }, "The BBS has forgotten this task.")]));
    this.history(history);
    this.definition(task);
  }

  lrp({ desired, instances, history }) {
    const running = instances.filter((one) => one.state === "RUNNING").length;
    this.put("facts", [desired?.modification_tag, running], () => [desired ? facts([
      ["Domain", desired.domain],
      ["Instances", `${running} running of ${desired.instances} desired`],
      ["Root fs", desired.rootfs],
      ["Memory", desired.memory_mb ? `${desired.memory_mb} MiB` : ""],
      ["Routes", Object.keys(desired.routes ?? {}).join(", ")],
    ]) : el("p", { class: "problem" }, "Not desired any more.")]);
    this.put("list", instances, () => [el("h3", {}, "Instances"), this.instances(instances)]);
    this.history(history);
    this.definition(desired);
  }

  cell({ cell }) {
    const on = [...this.store.instances.values()].filter((row) => row[I.cell] === this.guid);
    const tasks = [...this.store.tasks.values()].filter((row) => row[T.cell] === this.guid && row[T.state] === "running");
    this.put("facts", [cell, on.length, tasks.length], () => [cell ? facts([
      ["Zone", cell.zone],
      ["Instances", plural(on.length, "instance")],
      ["Tasks", plural(tasks.length, "running task")],
      ["Capacity", cell.capacity && `${cell.capacity.memory_mb} MiB memory, ${cell.capacity.disk_mb} MiB disk, ${cell.capacity.containers} containers`],
      ["Address", cell.rep_url],
    ]) : el("p", { class: "problem" }, `No presence. ${plural(on.length, "instance")} still counted on this cell.`)]);
    this.definition(cell, "Presence");
  }

  instances(lrps) {
    const rows = lrps.sort((a, b) => a.index - b.index).map((lrp) => {
      const state = { SUSPECT: "suspect", EVACUATING: "evacuating" }[lrp.presence] ?? lrp.state.toLowerCase();
      const ports = (lrp.ports ?? []).map((port) => `${lrp.address}:${port.host_port}`).join(" ");
      const trouble = lrp.placement_error || (lrp.crash_count ? `crash ${lrp.crash_count}: ${lrp.crash_reason ?? ""}` : "");
      return el("tr", { "data-state": state }, el("td", { class: "figure" }, String(lrp.index)),
        el("td", {}, glyph(`instance-${state}`, 10), ` ${spoken(state)}`),
        el("td", {}, lrp.cell_id ? link("cell", lrp.cell_id) : ""),
        el("td", { class: "figure" }, age(lrp.since / NANOS)),
        el("td", { class: "guid", title: lrp.instance_guid }, ports || trouble));
    });
    const head = ["", "state", "cell", "for", "address or trouble"].map((text) => el("th", { scope: "col" }, text));
    return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  }

  history(entries) {
    this.put("history", entries, () => [
      el("h3", {}, "History since this page's server started"),
      entries.length ? el("ol", { class: "past" }, ...entries.slice().reverse().map((entry) => el("li", {},
        el("time", {}, clock(entry[E.at])), symbol(entry),
        entry[E.index] === null ? null : el("span", { class: "figure" }, `/${entry[E.index]}`),
        el("span", {}, words(entry))))) : el("p", { class: "nothing" }, "Nothing happened yet."),
    ]);
  }

  definition(message, title = "Definition") {
    this.put("definition", message, () => (message ? [el("h3", {}, title), json(message)] : []));
  }

  // Changes

  buttons() {
    const { actions, kind, guid } = this;
    const host = this.parts.actions;
    if (!actions.allowed) return;
    if (kind === "task") host.append(actions.button("Cancel task", () => actions.send("/api/cancel", { guid })));
    if (kind === "cell") {
      host.append(
        actions.button("Kill", () => actions.stopPart(guid)),
        actions.button("Evacuate", () => actions.stopPart(guid, "term"), { title: "SIGTERM: instances move before it ends" }),
        actions.button("Start", () => actions.startPart(guid)));
    }
    if (kind === "lrp") this.scaling(host);
    if (kind === "run-task") this.newTask(host);
    if (kind === "desire") this.newApp(host);
  }

  scaling(host) {
    const { actions, guid } = this;
    const input = field("Instances", { type: "number", min: 0, max: 1000, value: this.store.lrps.get(guid)?.[L.instances] ?? 1 });
    const scale = () => actions.send("/api/scale", { guid, instances: Number(input.control.value) });
    onEnter(input.control, scale);
    host.append(input, actions.button("Scale", scale), actions.button("Remove", () => actions.send("/api/remove", { guid })));
  }

  newTask(host) {
    const { actions } = this;
    const script = el("textarea", { rows: 5, "aria-label": "Shell script", spellcheck: "false" });
    script.value = "sleep 3\necho hello from $(hostname) > result";
    host.append(el("p", {}, "A shell script; what it writes to the file `result` becomes the task's result."), script,
      actions.button("Run", async () => {
        const answer = await actions.send("/api/run-task", { script: script.value });
        if (answer) this.open("task", answer.done, this.opener);
      }, { class: "primary" }));
    script.focus();
  }

  newApp(host) {
    const { actions } = this;
    const guid = field("Process guid", { value: `app-${Math.random().toString(36).slice(2, 7)}` });
    const instances = field("Instances", { type: "number", min: 0, max: 1000, value: 3 });
    const desire = async () => {
      const given = { guid: guid.control.value, instances: Number(instances.control.value) };
      if (await actions.send("/api/desire", given)) this.open("lrp", given.guid, this.opener);
    };
    onEnter(instances.control, desire);
    host.append(el("p", {}, "An example web server."), guid, instances, actions.button("Desire", desire, { class: "primary" }));
  }
}

function field(text, attributes) {
  const control = el("input", { autocomplete: "off", ...attributes });
  const label = el("label", { class: "field" }, el("span", {}, text), control);
  return label; // whose `control` is the input
}

function onEnter(control, work) {
  control.addEventListener("keydown", (event) => event.key === "Enter" && work());
}

function facts(pairs) {
  const list = el("dl", {});
  for (const [name, value] of pairs) {
    if (value === "" || value === null || value === undefined || value === 0) continue;
    list.append(el("dt", {}, name), el("dd", {}, ...(Array.isArray(value) ? value : [value])));
  }
  return list;
}

function link(kind, guid) {
  return el("button", { class: "link-button", type: "button", "data-open": kind, "data-guid": guid }, guid);
}

function time(nanos) {
  return `${new Date(nanos / NANOS).toLocaleString("en-GB")} (${age(nanos / NANOS)} ago)`;
}

const TOKEN = /("(?:\\.|[^"\\])*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** JSON with its keys set apart. */
function json(message) {
  const text = JSON.stringify(message, null, 2).slice(0, LONGEST);
  const pre = el("pre", { class: "json", tabindex: "0", "aria-label": "JSON" });
  let from = 0;
  for (const match of text.matchAll(TOKEN)) {
    pre.append(text.slice(from, match.index));
    const kind = match[2] ? "key" : match[1] ? "string" : "literal";
    pre.append(el("span", { class: kind }, match[1] ?? match[0]), match[2] ?? "");
    from = match.index + match[0].length;
  }
  pre.append(text.slice(from));
  return pre;
}
