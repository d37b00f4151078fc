// One chart as SVG: lines with bands, dots, diamonds or intervals; crosshair, zoom by dragging, keyboard, a table behind.
// Included before a component's script. `shared` = { span, whole, cursor, smooth, log, hidden: Set of run places, names }.
const MARGIN = { left: 50, right: 10, top: 8, bottom: 22 };
const HEIGHT = 188;
const MOST_MARKS = 80;
const MOST_ROWS = 300;

function ticks(low, high, most) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

// Powers of ten, with 2 and 5 between them where there is room; a range too narrow for those gets even steps.
function logTicks(low, high, most) {
  const decades = Math.log10(high / low);
  const factors = decades > 1.5 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) {
      const tick = +(factor * 10 ** power).toPrecision(3);
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  const every = Math.ceil(found.length / (most + 1));
  return found.length < 2 ? ticks(low, high, most) : found.filter((_, i) => i % every === 0);
}

// Place of the value nearest to `wanted` in an increasing list.
function nearest(list, wanted) {
  let low = 0;
  let high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < wanted) low = middle; else high = middle;
  }
  return Math.abs(list[low] - wanted) <= Math.abs(list[high] - wanted) ? low : high;
}

// Exponential moving average without a bias towards zero at the start.
function smoothed(values, factor) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return sum / weight;
  });
}

class Chart {
  constructor(key, shared, hooks) {
    const { make, svg } = window.dflash;
    Object.assign(this, { key, shared, hooks, panel: null, width: 0, drag: null });
    this.node = make("figure", "df-curve");
    this.node.dataset.panel = key;
    this.title = make("h3");
    this.unit = make("span", "df-note");
    const head = make("figcaption");
    head.append(this.title, this.unit);
    this.readout = make("div", "df-curve-readout");
    this.plot = svg("svg", { height: HEIGHT, role: "img", tabindex: "0" });
    this.plot.classList.add("df-plot");
    this.details = make("details", "df-table");
    this.details.append(make("summary", "", "Table"), make("div", "df-scroll"));
    this.details.lastChild.tabIndex = 0;
    this.details.addEventListener("toggle", () => this.table());
    this.node.append(head, this.readout, this.plot, this.details);
    this.listen();
  }

  get isOverSteps() { return this.panel.axis === "step"; }

  get domain() {
    if (this.isOverSteps) return this.shared.span || this.shared.whole || [0, 1];
    const ends = this.visible().flatMap((curve) => [curve.x[0], curve.x.at(-1)]);
    return ends.length ? [Math.min(...ends) - 0.3, Math.max(...ends) + 0.3] : [0, 1];
  }

  visible() { return this.panel.curves.filter((curve) => !this.shared.hidden.has(curve.run)); }

  show(panel) {
    this.panel = panel;
    this.title.textContent = panel.question;
    this.title.title = panel.explains;
    this.unit.textContent = panel.unit;
    this.draw();
    if (this.details.open) this.table();
  }

  // Values as drawn: smoothed where asked for and where there are many points.
  values(curve) {
    return this.shared.smooth && !isMarked(curve) && this.isOverSteps && curve.x.length > 8 ? smoothed(curve.y, this.shared.smooth) : curve.y;
  }

  range(drawn) {
    const [from, to] = this.domain;
    let low = Infinity;
    let high = -Infinity;
    for (const curve of drawn) {
      for (let i = 0; i < curve.x.length; i++) {
        if (curve.x[i] < from || curve.x[i] > to) continue;
        low = Math.min(low, curve.low ? curve.low[i] : curve.y[i]);
        high = Math.max(high, curve.high ? curve.high[i] : curve.y[i]);
      }
    }
    this.isLog = this.shared.log && this.isOverSteps && low > 0 && high > low;
    if (low > high) return [0, 1];
    if (this.isLog) return [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    if (!this.isOverSteps) low = Math.min(0, low);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [low < 0 ? low - room : Math.max(0, low - room), high + room];
  }

  draw() {
    const { svg } = window.dflash;
    this.width = this.plot.clientWidth || this.node.clientWidth || 320;
    const drawn = this.visible();
    const [from, to] = this.domain;
    const [low, high] = this.range(drawn);
    const right = this.width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    this.x = (value) => MARGIN.left + ((value - from) / (to - from || 1)) * (right - MARGIN.left);
    const bend = this.isLog ? Math.log : (value) => value;
    this.y = (value) => bottom - ((bend(value) - bend(low)) / (bend(high) - bend(low) || 1)) * (bottom - MARGIN.top);
    this.step = (pixel) => from + ((pixel - MARGIN.left) / (right - MARGIN.left)) * (to - from);
    const parts = [];
    for (const tick of this.isLog ? logTicks(low, high, 4) : ticks(low, high, 4)) {
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: this.y(tick), y2: this.y(tick) }));
      const label = svg("text", { class: "tick", x: MARGIN.left - 6, y: this.y(tick) + 4, "text-anchor": "end" });
      label.textContent = figure(tick);
      parts.push(label);
    }
    for (const tick of ticks(from, to, Math.max(2, Math.floor(this.width / 90)))) {
      if (!Number.isInteger(tick)) continue;
      const label = svg("text", { class: "tick", x: this.x(tick), y: HEIGHT - 6, "text-anchor": "middle" });
      label.textContent = figure(tick);
      parts.push(label);
    }
    const axis = svg("text", { class: "tick axis", x: 0, y: HEIGHT - 6 });
    axis.textContent = this.panel.axis;
    parts.push(axis);
    const clip = `df-clip-${this.key}`;
    const mask = svg("clipPath", { id: clip });
    mask.append(svg("rect", { x: MARGIN.left, y: 0, width: Math.max(0, right - MARGIN.left), height: HEIGHT }));
    const lines = svg("g", { "clip-path": `url(#${clip})` });
    for (const curve of drawn) lines.append(...this.paths(curve));
    this.cross = svg("g", { class: "cross" });
    this.box = svg("rect", { class: "drag", y: MARGIN.top, height: bottom - MARGIN.top, width: 0 });
    this.plot.replaceChildren(mask, ...parts, lines, this.box, this.cross);
    this.point();
  }

  paths(curve) {
    const { svg } = window.dflash;
    const path = (values) => values.map((value, i) => (i ? "L" : "M") + this.x(curve.x[i]).toFixed(1) + " " + this.y(value).toFixed(1)).join("");
    const found = [];
    const values = this.values(curve);
    if (curve.style === "interval") {
      const bars = curve.x.map((x, i) => `M${this.x(x)} ${this.y(curve.low[i])}V${this.y(curve.high[i])}`).join("");
      found.push(svg("path", { class: "whisker", d: bars, stroke: curve.colour }));
    } else if (curve.low) {
      const back = curve.x.map((x, i) => [x, curve.low[i]]).reverse().map(([x, y]) => "L" + this.x(x).toFixed(1) + " " + this.y(y).toFixed(1)).join("");
      found.push(svg("path", { class: "band", d: path(curve.high) + back + "Z", fill: curve.colour }));
    } else if (values !== curve.y) {
      found.push(svg("path", { class: "raw", d: path(curve.y), stroke: curve.colour }));
    }
    found.push(svg("path", { class: `line ${curve.style}`, d: path(values), stroke: curve.colour }));
    const few = curve.x.length <= MOST_MARKS;
    if ((isMarked(curve) && few) || curve.x.length === 1) {
      const marks = curve.x.map((x, i) => mark(curve.style, this.x(x), this.y(values[i]), 3.4)).join("");
      found.push(svg("path", { class: "mark", d: marks, fill: curve.colour }));
    }
    return found;
  }

  // Crosshair and readout at the shared cursor, or the newest values where there is none.
  point() {
    if (!this.panel) return;
    const { make, svg } = window.dflash;
    const at = this.isOverSteps ? this.shared.cursor : this.own ?? null;
    const [from, to] = this.domain;
    const drawn = this.visible();
    const hits = drawn.map((curve) => {
      return { curve, i: nearest(curve.x, at ?? (this.isOverSteps ? to : from)) };
    });
    this.cross.replaceChildren();
    if (at !== null && at >= from && at <= to) {
      const x = this.x(at);
      this.cross.append(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
      for (const { curve, i } of hits) {
        const [px, py] = [this.x(curve.x[i]), this.y(this.values(curve)[i])];
        if (px >= MARGIN.left - 1 && px <= this.width - MARGIN.right + 1) this.cross.append(svg("circle", { cx: px, cy: py, r: 3.6, fill: curve.colour }));
      }
    }
    const many = this.shared.names.length > 1 && this.key !== "slots";
    const steps = [...new Set(hits.map(({ curve, i }) => curve.x[i]))];
    const place = at ?? (this.isOverSteps ? null : steps[0]);
    const where = make("span", "df-curve-where", place !== null && steps.length ? `${this.panel.axis} ${figure(Math.round(place), 0)}` : "newest");
    const entries = hits.map(({ curve, i }) => {
      const entry = make("span", "df-curve-entry");
      const swatch = svg("svg", { width: 16, height: 10, "aria-hidden": "true" });
      swatch.append(svg("path", { class: `line ${curve.style}`, d: "M0 5H16", stroke: curve.colour }));
      if (isMarked(curve)) swatch.append(svg("path", { class: "mark", d: mark(curve.style, 8, 5, 3.4), fill: curve.colour }));
      const value = make("b", "", figure(this.values(curve)[i]));
      const spread = curve.low ? ` (${figure(curve.low[i])} to ${figure(curve.high[i])})` : "";
      entry.title = `${this.shared.names[curve.run]}, ${curve.label}: ${figure(curve.y[i])}${spread} at ${this.panel.axis} ${figure(curve.x[i])}`;
      entry.append(swatch, make("span", "", many ? `${this.shared.names[curve.run]}, ${curve.label}` : curve.label), value);
      return entry;
    });
    this.readout.replaceChildren(where, ...entries);
    const spoken = hits.map(({ curve, i }) => `${many ? this.shared.names[curve.run] + ", " : ""}${curve.label} ${figure(curve.y[i])}`);
    this.plot.setAttribute("aria-label", `${this.panel.question} ${where.textContent}: ${spoken.join("; ")} (${this.panel.unit})`);
  }

  listen() {
    const place = (event) => event.clientX - this.plot.getBoundingClientRect().left;
    const clear = () => { if (this.isOverSteps) this.hooks.cursor(null); else { this.own = null; this.point(); } };
    const move = (value) => { if (this.isOverSteps) this.hooks.cursor(value); else { this.own = Math.round(value); this.point(); } };
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0 || !this.isOverSteps) { move(this.step(place(event))); return; }
      this.drag = place(event);
      this.plot.setPointerCapture(event.pointerId);
    });
    this.plot.addEventListener("pointermove", (event) => {
      const at = Math.max(MARGIN.left, Math.min(this.width - MARGIN.right, place(event)));
      if (this.drag !== null) {
        this.box.setAttribute("x", Math.min(at, this.drag));
        this.box.setAttribute("width", Math.abs(at - this.drag));
      }
      move(this.step(at));
    });
    this.plot.addEventListener("pointerup", (event) => {
      const began = this.drag;
      this.drag = null;
      if (began === null) return;
      this.box.setAttribute("width", 0);
      if (Math.abs(place(event) - began) > 6) this.hooks.zoom([this.step(Math.min(place(event), began)), this.step(Math.max(place(event), began))]);
    });
    this.plot.addEventListener("pointercancel", () => { this.drag = null; this.box.setAttribute("width", 0); });
    this.plot.addEventListener("pointerleave", () => { if (this.drag === null && document.activeElement !== this.plot) clear(); });
    this.plot.addEventListener("blur", clear);
    this.plot.addEventListener("dblclick", () => { if (this.isOverSteps) this.hooks.zoom(null); });
    this.plot.addEventListener("keydown", (event) => this.press(event, move, clear));
  }

  press(event, move, clear) {
    const curve = this.visible().reduce((most, one) => (one.x.length > (most?.x.length ?? 0) ? one : most), null);
    if (!curve) return;
    const [from, to] = this.domain;
    const at = (this.isOverSteps ? this.shared.cursor : this.own) ?? to;
    const inside = curve.x.filter((x) => x >= from && x <= to);
    const here = nearest(inside, at);
    const jump = event.shiftKey ? 10 : 1;
    const actions = {
      ArrowLeft: () => move(inside[Math.max(0, here - jump)]),
      ArrowRight: () => move(inside[Math.min(inside.length - 1, here + jump)]),
      Home: () => move(inside[0]),
      End: () => move(inside.at(-1)),
      Escape: clear,
    };
    if (this.isOverSteps) {
      Object.assign(actions, {
        "+": () => this.hooks.scale(0.5, at), "=": () => this.hooks.scale(0.5, at), "-": () => this.hooks.scale(2, at), 0: () => this.hooks.zoom(null),
      });
    }
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey || !inside.length) return;
    event.preventDefault();
    actions[event.key]();
  }

  // Built only while it is open: it has as many rows as the chart has points.
  table() {
    if (!this.details.open || !this.panel) return;
    const { make } = window.dflash;
    const drawn = this.visible();
    const steps = [...new Set(drawn.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    const every = Math.ceil(steps.length / MOST_ROWS);
    const shown = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
    const places = drawn.map((curve) => new Map(curve.x.map((x, i) => [x, i])));
    const table = make("table");
    const head = make("tr");
    const name = (curve) => (this.shared.names.length > 1 ? `${this.shared.names[curve.run]}, ${curve.label}` : curve.label);
    head.append(make("th", "", this.panel.axis), ...drawn.map((curve) => make("th", "", name(curve))));
    const rows = shown.map((step) => {
      const row = make("tr");
      row.append(make("td", "", figure(step)), ...drawn.map((curve, place) => {
        const i = places[place].get(step);
        if (i === undefined) return make("td", "", "");
        return make("td", "", figure(curve.y[i]) + (curve.low ? ` (${figure(curve.low[i])} to ${figure(curve.high[i])})` : ""));
      }));
      return row;
    });
    const body = make("tbody");
    body.append(...rows);
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    const note = make("p", "df-note", `${this.panel.unit}; ${figure(shown.length, 0)} of ${figure(steps.length, 0)} points. The CSV has every record.`);
    this.details.lastChild.replaceChildren(note, table);
  }
}

function isMarked(curve) {
  return !["line", "dashed", "dotted"].includes(curve.style);
}

function mark(style, x, y, size) {
  if (style === "diamonds") return `M${x} ${y - size - 1}L${x + size + 1} ${y}L${x} ${y + size + 1}L${x - size - 1} ${y}Z`;
  return `M${x - size} ${y}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0Z`;
}
