// Changes: only where the server offers them, that is bbs-dev.

import { byId, el } from "./dom.js";

export class Actions {
  constructor(store) {
    this.store = store;
    this.parts = new Map();
    store.on("status", () => this.showParts());
  }

  get allowed() {
    return Boolean(this.store.status.actions);
  }

  /** Send a change; the answer, or undefined after a message about what went wrong. */
  async send(path, body = {}) {
    try {
      const answer = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Bbs-Dev": "1" },
        body: JSON.stringify(body),
      });
      if (answer.ok) return await answer.json();
      const text = await answer.text();
      let problem = text;
      try {
        problem = JSON.parse(text).problem ?? text;
      } catch { /* not JSON: shown as it is */ }
      this.complain(problem || `HTTP ${answer.status}`);
    } catch (error) {
      this.complain(`no answer: ${error.message}`);
    }
    return undefined;
  }

  complain(text) {
    const toast = byId("toast");
    toast.textContent = text;
    toast.hidden = false;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { toast.hidden = true; }, 8000);
  }

  button(text, press, attributes = {}) {
    const button = el("button", { type: "button", ...attributes }, text);
    button.addEventListener("click", async () => {
      button.setAttribute("aria-busy", "true");
      await press();
      button.removeAttribute("aria-busy");
    });
    return button;
  }

  stopPart(name, signal = "kill") {
    return this.send(`/api/parts/${encodeURIComponent(name)}/kill?signal=${signal}`);
  }

  startPart(name) {
    return this.send(`/api/parts/${encodeURIComponent(name)}/start`);
  }

  /** Keep a host's one button in step with the state of a part. */
  partButton(host, part) {
    const down = part.state === "down";
    const wanted = down ? "start" : "stop";
    if (host.dataset.wanted === wanted) return;
    host.dataset.wanted = wanted;
    const focused = host.contains(document.activeElement);
    host.replaceChildren(this.button(wanted, () => (down ? this.startPart(part.name) : this.stopPart(part.name)), {
      class: "small", "aria-label": `${wanted} ${part.name}`, "data-part": part.name,
    }));
    if (focused) host.firstChild.focus();
  }

  showParts() {
    const others = (this.store.status.parts ?? []).filter((part) => !part.cell);
    byId("stack").hidden = !others.length;
    for (const part of others) {
      let item = this.parts.get(part.name);
      if (!item) {
        const state = el("span", { class: "state" }), buttons = el("span");
        const element = el("li", {}, el("span", { class: "sign", "aria-hidden": "true" }), el("span", {}, part.name), state, buttons);
        byId("parts").append(element);
        item = { element, state, buttons };
        this.parts.set(part.name, item);
      }
      item.element.className = part.state;
      item.element.firstChild.textContent = part.state === "ready" ? "●" : "○";
      item.state.textContent = part.state + (part.restarts ? ` · ${part.restarts} restarts` : "");
      this.partButton(item.buttons, part);
    }
  }
}
