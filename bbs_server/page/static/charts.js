// Small charts of the server's figures, five minutes wide.

import { byId, el, setText, oncePerFrame } from "./dom.js";

const SPAN = 300_000;
const GAP = 10_000; // ms without a point break the line

const CHARTS = [
  { place: 1, title: "Requests", unit: "/s" },
  { place: 2, title: "Answer time", unit: "ms" },
  { place: 3, title: "Commits", unit: "/s" },
  { place: 4, title: "Commit latency", unit: "ms" },
  { place: 5, title: "Batch size", unit: "each" },
  { place: 6, title: "Events", unit: "/s" },
];

export class Charts {
  constructor(store) {
    this.store = store;
    this.charts = CHARTS.map((chart) => this.make(chart));
    this.soon = oncePerFrame(() => this.show());
    store.on("points", this.soon);
    store.on("begin", this.soon);
    new ResizeObserver(this.soon).observe(byId("charts"));
  }

  make(chart) {
    const value = el("b", {}, "–");
    const top = el("small", { class: "top" });
    const canvas = el("canvas", { role: "img", "aria-label": chart.title });
    byId("charts").append(el("figure", {},
      el("figcaption", {}, el("span", {}, chart.title), value, el("small", {}, chart.unit)), canvas, top));
    return { ...chart, value, canvas, top };
  }

  show() {
    const now = Date.now();
    for (const chart of this.charts) {
      const points = this.store.points.filter((point) => point[chart.place] !== null && point[0] > now - SPAN);
      const values = points.map((point) => point[chart.place]);
      const most = Math.max(0, ...values);
      const last = values.length ? short(values[values.length - 1]) : "–";
      setText(chart.value, last);
      setText(chart.top, values.length ? `max ${short(most)}` : "no figures yet");
      chart.canvas.setAttribute("aria-label", `${chart.title}: ${last} ${chart.unit}, at most ${short(most)} in 5 minutes`);
      draw(chart.canvas, points, chart.place, most, now);
    }
  }
}

function draw(canvas, points, place, most, now) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.ceil(width * scale);
  canvas.height = Math.ceil(height * scale);
  const c = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.strokeStyle = style.getPropertyValue("--line");
  c.beginPath();
  c.moveTo(0, height - 0.5);
  c.lineTo(width, height - 0.5);
  c.stroke();
  const x = (at) => width - ((now - at) / SPAN) * width;
  const y = (value) => height - 1.5 - (value / (most || 1)) * (height - 5);
  c.strokeStyle = style.getPropertyValue("--chart");
  c.fillStyle = style.getPropertyValue("--chart-fill");
  c.lineWidth = 1.5;
  c.lineJoin = "round";
  for (const run of runs(points)) {
    const line = new Path2D();
    run.forEach((point) => line.lineTo(x(point[0]), y(point[place])));
    if (run.length === 1) line.lineTo(x(run[0][0]) + 1.5, y(run[0][place]));
    const area = new Path2D(line);
    area.lineTo(x(run[run.length - 1][0]), height - 1);
    area.lineTo(x(run[0][0]), height - 1);
    c.fill(area);
    c.stroke(line);
  }
}

function runs(points) {
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (point[0] - last > GAP) found.push([]);
    found[found.length - 1].push(point);
    last = point[0];
  }
  return found;
}

function short(value) {
  if (value >= 10_000) return `${Math.round(value / 1000)}k`;
  if (value >= 100) return String(Math.round(value));
  if (value >= 10) return value.toFixed(1);
  return value.toFixed(value && value < 0.1 ? 3 : 2).replace(/\.?0+$/, "");
}
