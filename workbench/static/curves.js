// Live curves of the chosen runs. Data arrive by themselves; zoom, crosshair, hidden runs and open tables stay.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const charts = new Map();
const shared = { names: [], span: chosen.span, whole: null, cursor: null, smooth: 0, log: false, hidden: new Set() };
let view = null;
let seen = "";
let asked = "";

const hooks = {
  cursor(step) {
    shared.cursor = step;
    for (const chart of charts.values()) if (chart.panel.axis === "step") chart.point();
  },
  zoom(span) {
    const [first, last] = shared.whole || [0, 1];
    if (span) span = [Math.max(first, span[0]), Math.min(last, span[1])];
    // Less than two steps show nothing, all steps are no zoom.
    shared.span = span && span[1] - span[0] >= 2 && (span[0] > first || span[1] < last) ? span : null;
    chosen.zoom(shared.span);
    redraw();
    refresh(); // finer points for what is in view
  },
  scale(factor, around) {
    const [from, to] = shared.span || shared.whole || [0, 1];
    const middle = around ?? (from + to) / 2;
    hooks.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  },
};

function redraw() {
  for (const chart of charts.values()) chart.draw();
  find(".df-whole").disabled = find(".df-out").disabled = !shared.span;
}

function legend() {
  const many = view.runs.length > 1;
  find(".df-runs-legend").replaceChildren(...view.runs.map((run, place) => {
    const button = make("button", "df-run-key");
    button.type = "button";
    button.setAttribute("aria-pressed", !shared.hidden.has(place));
    button.title = many ? "Hide or show this run" : "";
    button.disabled = !many;
    const swatch = make("i");
    swatch.style.background = run.colour;
    button.append(swatch, make("span", "", run.name), make("small", "", `${figure(run.records, 0)} records`));
    button.addEventListener("click", () => {
      if (!shared.hidden.delete(place)) shared.hidden.add(place);
      legend();
      redraw();
    });
    return button;
  }));
}

function show(answer) {
  view = answer;
  const names = view.runs.map((run) => run.name);
  if (names.join("\n") !== shared.names.join("\n")) shared.hidden.clear();
  shared.names = names;
  shared.whole = view.span;
  const grid = find(".df-curve-grid");
  for (const [key, chart] of charts) {
    if (view.panels.some((panel) => panel.key === key)) continue;
    chart.node.remove();
    charts.delete(key);
  }
  view.panels.forEach((panel, place) => {
    if (!charts.has(panel.key)) charts.set(panel.key, new Chart(panel.key, shared, hooks));
    const chart = charts.get(panel.key);
    if (grid.children[place] !== chart.node) grid.insertBefore(chart.node, grid.children[place] || null);
    chart.show(panel);
  });
  legend();
  find(".df-whole").disabled = find(".df-out").disabled = !shared.span;
  const empty = find(".df-curves-empty");
  empty.hidden = view.panels.length > 0;
  empty.textContent = "Nothing was recorded yet: the first curves appear with the first record (metrics.log_every steps).";
  const balance = find(".df-balance");
  balance.hidden = !view.panels.length || !view.balance;
  balance.querySelector("span").textContent = view.balance ? view.balance.words : "";
  element.firstElementChild.dataset.ready = names.join(",");
}

function trouble(text) {
  const node = find(".df-trouble");
  node.hidden = !text;
  node.textContent = text;
  if (text && !charts.size) find(".df-curves-empty").hidden = true;
}

async function look() {
  const names = chosen.names;
  if (!names.length) return;
  const request = { runs: names, span: shared.span };
  const key = JSON.stringify(request);
  try {
    const answer = await ask(server.read_curves, { ...request, seen: key === asked ? seen : "" });
    trouble("");
    if (key !== JSON.stringify({ runs: chosen.names, span: shared.span })) return; // asked for something else meanwhile
    if (!answer) return;
    asked = key;
    seen = answer.stamp;
    show(answer);
  } catch (error) {
    trouble(error.message);
  }
}

// All charts on one canvas, in the colours of the page as it is.
async function picture() {
  const scale = 2;
  const nodes = [...charts.values()];
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  const columns = nodes.length > 1 ? 2 : 1;
  const [width, height] = [Math.max(...nodes.map((chart) => chart.width)), HEIGHT + 86];
  const canvas = make("canvas");
  canvas.width = scale * (columns * (width + 24) + 24);
  canvas.height = scale * (Math.ceil(nodes.length / columns) * height + 24);
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  draw.fillStyle = colour("--df-surface");
  draw.fillRect(0, 0, canvas.width, canvas.height);
  for (const [place, chart] of nodes.entries()) {
    const [x, y] = [24 + (place % columns) * (width + 24), 24 + Math.floor(place / columns) * height];
    draw.fillStyle = colour("--df-ink");
    draw.font = "600 15px sans-serif";
    draw.fillText(chart.panel.question, x, y + 14);
    const title = draw.measureText(chart.panel.question).width;
    draw.font = "12px sans-serif";
    draw.fillStyle = colour("--df-muted");
    draw.fillText(chart.panel.unit, x + title + 12, y + 14);
    let [at, line] = [x, y + 34];
    for (const curve of chart.visible()) {
      const text = shared.names.length > 1 ? `${shared.names[curve.run]}, ${curve.label}` : curve.label;
      const space = draw.measureText(text).width + 30;
      if (at + space > x + width && at > x) { [at, line] = [x, line + 15]; }
      draw.fillStyle = curve.colour;
      draw.fillRect(at, line - 6, 12, 3);
      draw.fillStyle = colour("--df-muted");
      draw.fillText(text, at + 16, line);
      at += space;
    }
    draw.drawImage(await image(chart.plot), x, y + 64);
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// An SVG as an image: style sheets do not reach into images, so what they say is written into every node.
async function image(plot) {
  const copy = plot.cloneNode(true);
  const originals = plot.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((node, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size"]) node.style.setProperty(name, style.getPropertyValue(name));
    node.style.fontFamily = "sans-serif";
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", plot.clientWidth);
  const picture = new Image();
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  await picture.decode();
  return picture;
}

find(".df-scale").addEventListener("change", (event) => { shared.log = event.target.value === "log"; redraw(); });
find(".df-factor").addEventListener("change", (event) => { shared.smooth = Number(event.target.value); redraw(); });
find(".df-in").addEventListener("click", () => hooks.scale(0.5, shared.cursor));
find(".df-out").addEventListener("click", () => hooks.scale(2, shared.cursor));
find(".df-whole").addEventListener("click", () => hooks.zoom(null));
new ResizeObserver(() => { if (view) redraw(); }).observe(find(".df-curve-grid"));
redraw();
const refresh = every(2, look);
window.addEventListener("dflash:runs", refresh);
window.addEventListener("dflash:acted", refresh);
window.addEventListener("dflash:picture", async () => {
  if (charts.size) download(`${shared.names[0]}.png`, "image/png", await picture());
});
