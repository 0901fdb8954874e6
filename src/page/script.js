"use strict";
const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const filter = byId("filter");

// A group of buttons of which one is pressed; calls back with that button's data.
function segments(id, pressed) {
  const group = byId(id);
  if (!group) return;
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      pressed(button.dataset);
    });
  }
}

function choose(name) {
  filter.value = filter.value === name ? "" : name;
  filter.dispatchEvent(new Event("change"));
}

// The gallery: of one class, of one kind.
let kind = "";
const articles = all("article");
function showArticles() {
  let shown = 0;
  for (const article of articles) {
    const ofClass = filter.value === "" || article.dataset.class === filter.value;
    article.hidden = !(ofClass && (kind === "" || article.dataset.kind === kind));
    shown += article.hidden ? 0 : 1;
  }
  if (byId("shown")) {
    byId("shown").textContent = `${shown} shown`;
    byId("none-shown").hidden = shown > 0;
  }
}
segments("kinds", (data) => {
  kind = data.kind;
  showArticles();
});

// The classes: sorted, and dimmed unless they are the chosen one.
const list = byId("classes-list");
const orders = {
  best: (a, b) => b.dataset.top1 - a.dataset.top1,
  worst: (a, b) => a.dataset.top1 - b.dataset.top1,
  name: (a, b) => a.dataset.class.localeCompare(b.dataset.class),
};
segments("class-order", (data) => {
  list.append(...[...list.children].sort(orders[data.order]));
  list.scrollTop = 0;
});
for (const button of all("button.name")) {
  button.addEventListener("click", () => choose(button.closest("li").dataset.class));
}
function dimClasses() {
  for (const item of all(".bars li")) {
    item.classList.toggle("dim", filter.value !== "" && item.dataset.class !== filter.value);
  }
}

// The map.
const PALETTE = ["#4c78c8", "#e07b39", "#3f9f6b", "#d1495b", "#8e6cc2", "#a0713c", "#d677b8", "#7d868f", "#b0a82c", "#33a7b8"];
const SPRITE_SIDE = 32;
const SPRITE_COLUMNS = 50;
const MARGIN = 18;
const REACH = 22;
const source = byId("map-data");
const plot = source && makeMap(JSON.parse(source.textContent));

// Returns the extent of the points on each axis, symmetric about the middle.
function spansOf(points) {
  return [0, 1].map((axis) => 2 * Math.max(1, ...points.map((point) => Math.abs(point[axis] - 500))));
}

function makeMap(data) {
  const canvas = byId("map-canvas");
  const card = byId("map-card");
  const sprite = byId("map-sprite");
  const still = "Point at the map, or go through it with the arrow keys.";
  const colours = data.classes.map((_, at) =>
    data.classes.length <= PALETTE.length ? PALETTE[at] : `hsl(${(at * 137.508) % 360} 58% 56%)`);
  let points = data.tsne || data.pca;
  let spans = spansOf(points);
  let mark = "points";
  let current = -1;
  const isChosen = (at) => filter.value === "" || data.classes[data.class[at]] === filter.value;
  // Both axes by one scale, the largest that fits.
  const place = (at) => {
    const [spanX, spanY] = spans;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = Math.min((width - 2 * MARGIN) / spanX, (height - 2 * MARGIN) / spanY);
    return [width / 2 + (points[at][0] - 500) * scale, height / 2 - (points[at][1] - 500) * scale];
  };
  const cut = (context, at, x, y, side) => {
    const left = (at % SPRITE_COLUMNS) * SPRITE_SIDE;
    const top = Math.floor(at / SPRITE_COLUMNS) * SPRITE_SIDE;
    context.drawImage(sprite, left, top, SPRITE_SIDE, SPRITE_SIDE, x, y, side, side);
  };

  function draw() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const order = points.map((_, at) => at).sort((a, b) => isChosen(a) - isChosen(b));
    if (mark === "images") {
      // In an order that favours no class, but for the chosen one.
      const scattered = (at) => Math.imul(at + 1, 2654435761) >>> 0;
      drawImages(context, order.sort((a, b) => isChosen(b) - isChosen(a) || scattered(a) - scattered(b)));
    } else {
      for (const at of order) {
        const [x, y] = place(at);
        context.globalAlpha = isChosen(at) ? 0.85 : 0.1;
        context.fillStyle = colours[data.class[at]];
        context.beginPath();
        context.arc(x, y, canvas.clientWidth < 500 ? 2.6 : 3.6, 0, 2 * Math.PI);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    if (current >= 0) {
      const [x, y] = place(current);
      context.strokeStyle = getComputedStyle(document.body).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, 8, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // Images where there is room for them; the chosen class comes first.
  function drawImages(context, order) {
    const side = canvas.clientWidth < 500 ? 20 : 28;
    const taken = new Set();
    for (const at of order) {
      const [x, y] = place(at);
      const cell = `${Math.round(x / (side + 3))} ${Math.round(y / (side + 3))}`;
      if (taken.has(cell)) continue;
      taken.add(cell);
      const [column, row] = cell.split(" ").map((number) => number * (side + 3));
      context.globalAlpha = isChosen(at) ? 1 : 0.12;
      cut(context, at, column - side / 2, row - side / 2, side);
      context.strokeStyle = colours[data.class[at]];
      context.lineWidth = 2;
      context.strokeRect(column - side / 2, row - side / 2, side, side);
    }
  }

  function look(at) {
    current = at;
    card.hidden = at < 0;
    byId("map-readout").textContent = at < 0 ? still : `${data.classes[data.class[at]]}, instance ${data.id[at]}`;
    if (at >= 0) {
      const image = card.querySelector("canvas");
      image.hidden = !sprite;
      if (sprite) cut(image.getContext("2d"), at, 0, 0, image.width);
      card.querySelector("b").textContent = data.classes[data.class[at]];
      card.querySelector("span").textContent = `instance ${data.id[at]}`;
      const [x, y] = place(at);
      const left = x + 16 + card.offsetWidth > canvas.clientWidth ? x - 16 - card.offsetWidth : x + 16;
      const top = Math.min(Math.max(0, y - card.offsetHeight / 2), canvas.clientHeight - card.offsetHeight);
      card.style.transform = `translate(${Math.max(0, left)}px, ${top}px)`;
    }
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    let nearest = -1;
    let least = REACH ** 2;
    for (let at = 0; at < points.length; at += 1) {
      if (!isChosen(at)) continue;
      const [x, y] = place(at);
      const distance = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (distance < least) [nearest, least] = [at, distance];
    }
    if (nearest !== current) look(nearest);
  });
  canvas.addEventListener("pointerleave", () => look(-1));
  canvas.addEventListener("blur", () => look(-1));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") look(-1);
    if (!step) return;
    event.preventDefault();
    // From left to right, so that the eye can follow.
    const order = points.map((_, at) => at).filter(isChosen).sort((a, b) => points[a][0] - points[b][0] || a - b);
    const next = order.indexOf(current) + step;
    if (order.length > 0) look(order[(next + order.length) % order.length]);
  });
  segments("projections", (chosen) => {
    points = data[chosen.map];
    spans = spansOf(points);
    look(-1);
  });
  segments("marks", (chosen) => {
    mark = chosen.mark;
    draw();
  });
  const legend = byId("map-legend");
  if (data.classes.length <= 40) {
    data.classes.forEach((name, at) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.class = name;
      const swatch = document.createElement("i");
      swatch.style.background = colours[at];
      button.append(swatch, name);
      button.addEventListener("click", () => choose(name));
      item.append(button);
      legend.append(item);
    });
  }
  new ResizeObserver(draw).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return {
    follow() {
      for (const button of legend.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.dataset.class === filter.value));
      }
      look(-1);
    },
  };
}

function follow() {
  showArticles();
  dimClasses();
  if (plot) plot.follow();
}
filter.addEventListener("change", follow);
follow();
