// How each state looks: a colour and a shape of its own, so that colour is never the only difference.

export const INSTANCE_STATES = ["running", "claimed", "unclaimed", "crashed", "suspect", "evacuating"];
export const TASK_STATES = ["pending", "running", "completed", "failed", "resolving"];

const SHAPES = {
  "instance-running": (c, s) => box(c, s, true),
  "instance-claimed": (c, s) => box(c, s, false),
  "instance-unclaimed": (c, s) => ring(c, s),
  "instance-crashed": (c, s) => cross(c, s),
  "instance-suspect": (c, s) => path(c, [[s / 2, s * 0.04], [s, s * 0.94], [0, s * 0.94]]),
  "instance-evacuating": (c, s) => path(c, [[s * 0.08, 0], [s * 0.98, s / 2], [s * 0.08, s]]),
  "task-pending": (c, s) => ring(c, s),
  "task-running": (c, s) => disc(c, s, 0, 2),
  "task-completed": (c, s) => tick(c, s),
  "task-failed": (c, s) => cross(c, s),
  "task-resolving": (c, s) => { ring(c, s); disc(c, s, 0.5, 1.5); },
};

/** What people read for a state. */
export const spoken = (state) => (state === "unclaimed" ? "waiting" : state);

export const LOOKS = Object.keys(SHAPES);

function stroke(c, s) {
  c.lineWidth = Math.max(1.25, s * 0.16);
}

function box(c, s, filled) {
  const inset = filled ? 0 : Math.max(1.25, s * 0.16) / 2;
  stroke(c, s);
  c.beginPath();
  c.roundRect(inset, inset, s - 2 * inset, s - 2 * inset, s * 0.15);
  if (filled) c.fill(); else c.stroke();
}

function ring(c, s) {
  stroke(c, s);
  c.beginPath();
  c.arc(s / 2, s / 2, s / 2 - c.lineWidth / 2, 0, 2 * Math.PI);
  c.stroke();
}

function disc(c, s, from, to) {
  c.beginPath();
  c.arc(s / 2, s / 2, s / 2, from * Math.PI, to * Math.PI);
  c.fill();
}

function cross(c, s) {
  c.lineWidth = Math.max(1.6, s * 0.24);
  const i = c.lineWidth / 2;
  lines(c, [[i, i], [s - i, s - i]]);
  lines(c, [[s - i, i], [i, s - i]]);
}

function tick(c, s) {
  c.lineWidth = Math.max(1.5, s * 0.22);
  lines(c, [[s * 0.08, s * 0.55], [s * 0.38, s * 0.84], [s * 0.94, s * 0.16]]);
}

function lines(c, points) {
  c.lineCap = c.lineJoin = "round";
  c.beginPath();
  points.forEach(([x, y]) => c.lineTo(x, y));
  c.stroke();
}

function path(c, points) {
  c.beginPath();
  points.forEach(([x, y]) => c.lineTo(x, y));
  c.closePath();
  c.fill();
}

function colour(look) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${look}`).trim() || "#888";
}

/** All looks as pictures of `size` CSS pixels, normal and dimmed; made anew for another scale or colour scheme. */
const atlases = new Map();

export function atlas(size) {
  const scale = window.devicePixelRatio || 1;
  const key = `${size}@${scale}`;
  if (!atlases.has(key)) atlases.set(key, paint(size, scale));
  return atlases.get(key);
}

export function forgetAtlases() {
  atlases.clear();
}

function paint(size, scale) {
  const cell = Math.ceil((size + 2) * scale);
  const picture = document.createElement("canvas");
  picture.width = cell * LOOKS.length;
  picture.height = cell * 2;
  const c = picture.getContext("2d");
  LOOKS.forEach((look, place) => {
    for (const dim of [0, 1]) {
      c.setTransform(scale, 0, 0, scale, place * cell, dim * cell);
      c.globalAlpha = dim ? 0.13 : 1;
      c.fillStyle = c.strokeStyle = colour(look);
      SHAPES[look](c, size);
    }
  });
  return { picture, cell, size, scale, places: new Map(LOOKS.map((look, place) => [look, place * cell])) };
}

/** A single mark as an element, for legends and tables. */
export function glyph(look, size = 11) {
  const canvas = document.createElement("canvas");
  canvas.className = "glyph";
  canvas.setAttribute("aria-hidden", "true");
  canvas.dataset.look = look;
  canvas.dataset.size = size;
  canvas.style.width = canvas.style.height = `${size}px`;
  repaint(canvas);
  return canvas;
}

export function repaint(canvas) {
  const scale = window.devicePixelRatio || 1;
  const size = Number(canvas.dataset.size);
  canvas.width = canvas.height = Math.ceil(size * scale);
  const c = canvas.getContext("2d");
  const shape = SHAPES[canvas.dataset.look];
  if (!shape) return;
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.fillStyle = c.strokeStyle = colour(canvas.dataset.look);
  shape(c, size);
}
