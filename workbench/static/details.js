// Timeline and trace of one finished run: two views of the same steps that point at one another.
const { make, svg, visible, milliseconds, seconds } = window.dflash;
const find = (selector) => element.querySelector(selector);
const rows = find(".df-rows");
const chart = find(".df-chart");
let race = null;
let steps = []; // the draft's steps behind the prefill, which proposes nothing
let chosen = -1;

function chip(piece, kind, title) {
  const node = make("span", "df-chip " + kind, visible(piece));
  node.title = title;
  return node;
}

function row(step) {
  const node = make("div", "df-row");
  node.setAttribute("role", "option");
  node.setAttribute("aria-selected", "false");
  node.tabIndex = step.index === 1 ? 0 : -1;
  node.dataset.step = step.index;
  const chips = make("span", "df-chips");
  step.proposed.forEach((piece, place) => {
    const kept = place < step.accepted;
    chips.append(chip(piece, kept ? "acc" : "rej", `slot ${place + 1}: ${kept ? "accepted" : "rejected"}`));
  });
  const own = chip(step.correction, "own", step.accepted < step.proposed.length ? "the target's correction" : "bonus token");
  // The correction stands where the first rejected guess stood.
  chips.insertBefore(own, chips.children[step.accepted] || null);
  const left = step.proposed.slice(step.accepted);
  const spoken = `step ${step.index}: ${step.accepted} of ${step.proposed.length} guesses kept, ` +
    `emits ${step.emitted.join("")}` + (left.length ? `, rejected ${left.join("") || "parts of a character"}` : "");
  node.setAttribute("aria-label", spoken);
  node.append(make("span", "df-index", String(step.index)), chips,
    make("span", "df-kept", `${step.accepted}/${step.proposed.length}`),
    make("span", "df-ms", milliseconds(step.draft_s + step.verify_s + step.overhead_s)));
  node.addEventListener("mouseenter", () => window.dflash.select(step.index, "pointer"));
  node.addEventListener("focus", () => window.dflash.select(step.index, "keyboard"));
  return node;
}

function table() {
  const body = steps.map((step) => {
    const line = make("tr");
    const cells = [step.index, step.emitted.length, step.accepted, step.draft_s, step.verify_s, step.overhead_s];
    cells.forEach((cell, place) => line.append(make("td", "", place < 3 ? String(cell) : (cell * 1000).toFixed(2))));
    return line;
  });
  const head = make("tr");
  for (const name of ["step", "tokens", "accepted", "draft ms", "verify ms", "overhead ms"]) head.append(make("th", "", name));
  const sections = [make("thead"), make("tbody")];
  sections[0].append(head);
  sections[1].append(...body);
  find(".df-table table").replaceChildren(...sections);
}

function axis(canvas, width, total, top, bottom, scale) {
  const wanted = total / Math.max(3, Math.floor(width / 140));
  const step = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((size) => size >= wanted) || 100;
  for (let tick = 0; tick <= total + 1e-9; tick += step) {
    const x = scale(tick);
    canvas.append(svg("line", { x1: x, x2: x, y1: top, y2: bottom, class: "df-grid" }));
    const label = svg("text", { x, y: bottom + 16, class: "df-axis", "text-anchor": tick === 0 ? "start" : "middle" });
    label.textContent = step < 0.1 ? tick.toFixed(2) + " s" : tick.toFixed(1) + " s";
    canvas.append(label);
  }
}

function segments(canvas, trace, y, height, scale, parts) {
  canvas.append(svg("rect", { x: scale(0), y, width: Math.max(1, scale(trace.ttft_s) - scale(0)), height, class: "df-seg prefill" }));
  for (const step of trace.steps.slice(1)) {
    const group = svg("g", { class: "df-group", "data-step": step.index });
    let begin = step.start_s;
    for (const part of parts) {
      const x = scale(begin);
      const width = Math.max(0.4, scale(begin + step[part + "_s"]) - x - (part === parts[parts.length - 1] ? 0.7 : 0));
      group.append(svg("rect", { x, y, width, height, class: "df-seg " + part }));
      begin += step[part + "_s"];
    }
    canvas.append(group);
  }
}

function timeline() {
  const total = Math.max(race.target.total_s, race.draft.total_s);
  const width = Math.max(520, chart.parentElement.clientWidth - 2);
  const scale = (time) => 1 + (time / total) * (width - 24);
  const canvas = svg("svg", { width, height: 148, role: "img", "aria-label":
    `Target alone ${seconds(race.target.total_s)}, draft and target ${seconds(race.draft.total_s)}` });
  axis(canvas, width, total, 18, 124, scale);
  const names = [["target", "target alone", 14], ["draft", "draft + target", 68]];
  for (const [name, label, y] of names) {
    const text = svg("text", { x: 1, y, class: "df-track" });
    text.textContent = `${label} · ${race[name].forwards} forwards · ${seconds(race[name].total_s)}`;
    canvas.append(text);
  }
  segments(canvas, race.target, 22, 28, scale, ["verify", "overhead"]);
  segments(canvas, race.draft, 76, 40, scale, ["draft", "verify", "overhead"]);
  chart.replaceChildren(canvas);
  for (const group of canvas.querySelectorAll("g.df-group")) {
    const own = Number(group.dataset.step);
    if (group.querySelector(".draft")) {
      group.addEventListener("mouseenter", () => window.dflash.select(own, "pointer"));
      group.addEventListener("click", () => rows.children[own - 1]?.focus());
    }
  }
  mark(chosen);
}

function mark(index) {
  for (const group of chart.querySelectorAll("g.df-group")) {
    group.classList.toggle("chosen", Boolean(group.querySelector(".draft")) && Number(group.dataset.step) === index);
  }
}

function readout(step) {
  const tokens = step.emitted.length === 1 ? "1 token" : `${step.emitted.length} tokens`;
  find(".df-readout").textContent = `step ${step.index}: ${tokens} · draft ${milliseconds(step.draft_s)} · ` +
    `verify ${milliseconds(step.verify_s)} · overhead ${milliseconds(step.overhead_s)}`;
}

function reveal(node) {
  // Scrolls the list only, never the page.
  const top = node.offsetTop - rows.offsetTop;
  if (top < rows.scrollTop) rows.scrollTop = top;
  if (top + node.offsetHeight > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + node.offsetHeight - rows.clientHeight;
}

window.addEventListener("dflash:step", (event) => {
  const index = event.detail.index;
  if (!steps[index - 1] || index === chosen) return;
  chosen = index;
  for (const node of rows.children) {
    const mine = Number(node.dataset.step) === index;
    node.classList.toggle("chosen", mine);
    node.setAttribute("aria-selected", mine);
    node.tabIndex = mine ? 0 : -1;
    if (mine) reveal(node);
  }
  mark(index);
  readout(steps[index - 1]);
  clearTimeout(timer);
  if (["pointer", "keyboard"].includes(event.detail.source)) timer = setTimeout(rememberStep, QUIET);
});

rows.addEventListener("keydown", (event) => {
  const last = steps.length - 1;
  const here = Number(document.activeElement.dataset.step ?? 1) - 1;
  const next = { ArrowDown: here + 1, ArrowRight: here + 1, ArrowUp: here - 1, ArrowLeft: here - 1,
    PageDown: here + 10, PageUp: here - 10, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  rows.children[Math.max(0, Math.min(last, next))].focus({ preventScroll: true });
});

const LONGEST_LINK = 6000; // characters; servers and chat programs cut longer ones
const QUIET = 300; // ms on one step before it is in the address: browsers refuse hundreds of changes at once
let timer = null;

// This page with these values in its address and no others; empty ones are left out.
function address(values) {
  const link = new URL(window.location.pathname, window.location.origin);
  for (const [name, value] of Object.entries(values)) {
    const text = Array.isArray(value) ? (value.length ? JSON.stringify(value) : "") : String(value ?? "");
    if (text) link.searchParams.set(name, text);
  }
  return link.href;
}

const atStep = () => (chosen > 1 ? { step: chosen } : {});

function remember(values) {
  clearTimeout(timer);
  const href = address(values);
  // Where the settings are too long for an address it names none, rather than others.
  history.replaceState(history.state, "", href.length <= LONGEST_LINK ? href : window.location.pathname);
}

function rememberStep() {
  const link = new URL(window.location.href);
  if (chosen > 1) link.searchParams.set("step", chosen); else link.searchParams.delete("step");
  history.replaceState(history.state, "", link);
}

function copyLink() {
  const href = address({ ...race.settings, ...atStep() });
  const button = find(".df-copy");
  if (href.length <= LONGEST_LINK) return window.dflash.handOver(href, button);
  button.textContent = "Too long for a link: save the trace";
  setTimeout(() => { button.textContent = button.dataset.label || "Copy link"; }, 3000);
}

function draw() {
  race = props.value ? JSON.parse(props.value) : null;
  const ready = Boolean(race && race.phase === "done" && race.draft.steps.length > 1);
  element.firstElementChild.dataset.empty = String(!ready);
  if (!ready) return;
  chosen = -1;
  steps = race.draft.steps.slice(1);
  find(".df-save").hidden = Boolean(race.recorded);
  rows.replaceChildren(...steps.map(row));
  rows.scrollTop = 0;
  table();
  timeline();
  find(".df-readout").textContent = "";
  const asked = Number(new URL(window.location.href).searchParams.get("step"));
  if (asked > 1 && steps[asked - 1]) window.dflash.select(asked, "link"); else window.dflash.select(1, "start");
}

find(".df-export").addEventListener("click", () => window.dflash.download("dflash-trace.json", race.trace));
find(".df-copy").dataset.label = "Copy link";
find(".df-copy").addEventListener("click", copyLink);
find(".df-save").addEventListener("click", () => trigger("save"));
window.addEventListener("dflash:saved", (event) => {
  remember({ trace: event.detail, ...atStep() });
  window.dflash.handOver(window.location.href, find(".df-save"));
});
window.addEventListener("dflash:edited", (event) => remember(event.detail));
new ResizeObserver(() => { if (race && race.phase === "done") timeline(); }).observe(chart.parentElement);
watch("value", draw);
draw();
