// The page: one store fed by one stream, and views of it.

import { byId, el, setText, plural } from "./dom.js";
import { forgetAtlases, repaint } from "./states.js";
import { I, Store, T } from "./store.js";
import { Actions } from "./actions.js";
import { Cells, Tasks } from "./boxes.js";
import { Charts } from "./charts.js";
import { Details } from "./details.js";
import { Domains } from "./domains.js";
import { Overview } from "./overview.js";
import { Search } from "./search.js";
import { TimeLine } from "./timeline.js";

const store = new Store();
const actions = new Actions(store);
const details = new Details(store, actions);
const open = (kind, guid, from) => details.open(kind, guid, from);

/** What stands out: rows with the text and of the look, where given. */
const filter = {
  text: "",
  look: "",
  changed: () => { cells.redraw(); tasks.redraw(); },
};

const has = (...values) => values.some((value) => value.toLowerCase().includes(filter.text));

const dimmed = {
  instance: (row) => (filter.look && filter.look !== `instance-${row[I.state]}`)
    || (filter.text && !has(row[I.guid], row[I.domain], row[I.cell])),
  task: (row) => (filter.look && filter.look !== `task-${row[T.state]}`)
    || (filter.text && !has(row[T.guid], row[T.domain], row[T.cell])),
};

const tipBox = byId("tip");

function tip(text, x, y) {
  tipBox.hidden = !text;
  if (!text) return;
  setText(tipBox, text);
  const left = Math.min(x + 12, window.innerWidth - tipBox.offsetWidth - 8);
  const top = y + 16 + tipBox.offsetHeight > window.innerHeight ? y - tipBox.offsetHeight - 10 : y + 16;
  tipBox.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

const settings = { dimmed, open, tip, partButton: (host, part) => actions.partButton(host, part) };
const cells = new Cells(store, settings);
const tasks = new Tasks(store, settings);
new Overview(store, filter);
new Charts(store);
new Domains(store);
new TimeLine(store, open);
new Search(store, filter, open);

// The connection, and that of the server behind it

let linked = false;

function showLink() {
  const problem = store.status.problem;
  const [state, text] = !linked ? ["lost", "page server does not answer"]
    : problem ? ["lost", `BBS: ${problem}`] : ["live", "live"];
  const link = byId("link");
  link.dataset.state = state;
  setText(link, text);
  link.title = text;
  document.body.classList.toggle("out-of-date", state === "lost");
  if (state === "live") document.title = `BBS fleet · ${plural(store.instances.size, "instance")}`;
}

store.on("link", (value) => { linked = value; showLink(); });
store.on("status", showLink);
store.on("ready", showLink);

let offered = false;
store.on("status", (status) => {
  if (!status.actions || offered) return;
  offered = true;
  byId("buttons").append(
    el("button", { type: "button", onclick: (event) => open("run-task", "Run a task", event.currentTarget) }, "Run a task"),
    el("button", { type: "button", onclick: (event) => open("desire", "Desire an app", event.currentTarget) }, "Desire an app"));
});

// Another colour scheme or pixel ratio: everything on canvas is painted anew.

function repaintAll() {
  forgetAtlases();
  document.querySelectorAll("canvas.glyph").forEach(repaint);
  cells.redraw();
  tasks.redraw();
  store.tell("points");
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaintAll);

function watchPixelRatio() {
  matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`).addEventListener("change", () => {
    repaintAll();
    watchPixelRatio();
  }, { once: true });
}

watchPixelRatio();
document.addEventListener("scroll", () => tip(null), { capture: true, passive: true });
store.connect();
