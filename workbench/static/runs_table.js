// The table of runs: sorted and filtered here, so that neither needs the server.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const MOST = 6;
const WORDS = {
  queued: "queued", starting: "starting", running: "running", stopped: "stopped", finished: "finished", failed: "failed", lost: "lost",
};
const COLUMNS = [
  { key: "name", label: "Run", first: "ascending" },
  { key: "state", label: "State", first: "ascending" },
  { key: "progress", label: "Steps", title: "Steps done of steps planned" },
  { key: "eta_seconds", label: "Left", first: "ascending", title: "Time left for training alone: validation and decoding come on top" },
  { key: "loss", label: "Loss", first: "ascending", title: "Of the last recorded training step, nats per token" },
  { key: "validation_loss", label: "Held out", first: "ascending", title: "Loss on held-out conversations, nats per token" },
  { key: "tau_estimate", label: "τ est.", title: "Estimated tokens per target forward, on held-out rows where there are some" },
  { key: "decoded_tau", label: "τ decoded", title: "Tokens per target forward, measured by decoding" },
  { key: "tokens_per_s", label: "Tokens/s", title: "Training speed over all ranks" },
  { key: "started", label: "Started" },
];
let rows = [];
let seen = "";
let sort = { key: null, order: "descending" };
const lines = new Map();

function headers() {
  const cells = COLUMNS.map((column) => {
    const cell = make("th");
    cell.scope = "col";
    cell.dataset.column = column.key;
    const button = make("button", "", column.label);
    button.type = "button";
    if (column.title) button.title = column.title;
    button.addEventListener("click", () => {
      const first = column.first || "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      if (sort.key !== column.key) sort = { key: column.key, order: first };
      else if (sort.order === first) sort = { key: column.key, order: other };
      else sort = { key: null, order: "descending" };
      draw();
    });
    cell.append(button);
    return cell;
  });
  const box = make("th", "df-runs-check");
  box.append(make("span", "df-hidden-text", "Show"));
  find("thead tr").append(box, ...cells);
}

function sorted(visible) {
  if (!sort.key) return visible;
  const sign = sort.order === "ascending" ? 1 : -1;
  const missing = (value) => value === null || value === undefined;
  return [...visible].sort((a, b) => {
    const [x, y] = [a[sort.key], b[sort.key]];
    if (missing(x) || missing(y)) return missing(x) - missing(y); // nothing to compare goes last either way
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function newLine(name) {
  const line = make("tr");
  const check = make("input");
  check.type = "checkbox";
  check.setAttribute("aria-label", `Show ${name}`);
  check.addEventListener("change", () => {
    const names = chosen.names.filter((other) => other !== name);
    if (check.checked) names.push(name);
    if (names.length > MOST) { check.checked = false; trouble(`Up to ${MOST} runs can be told apart: take one out first.`); return; }
    trouble("");
    chosen.choose(names);
  });
  const box = make("td", "df-runs-check");
  const swatch = make("i", "df-run-swatch");
  box.append(check, swatch);
  const button = make("button", "df-run-name", name);
  button.type = "button";
  button.addEventListener("click", () => chosen.choose([name]));
  const title = make("th");
  title.scope = "row";
  const tags = make("span", "df-run-tags");
  title.append(button, tags);
  const state = make("td");
  const chip = make("span", "df-state");
  state.append(chip);
  const steps = make("td", "df-run-steps");
  const text = make("span");
  const bar = make("span", "df-run-bar");
  bar.append(make("i"));
  steps.append(text, bar);
  const numbers = COLUMNS.slice(3).map(() => make("td"));
  line.append(box, title, state, steps, ...numbers);
  return { line, check, swatch, button, tags, chip, text, bar, numbers };
}

function fill(parts, row) {
  const place = chosen.names.indexOf(row.name);
  parts.line.classList.toggle("chosen", place >= 0);
  parts.check.checked = place >= 0;
  parts.swatch.dataset.place = place >= 0 ? place : "";
  parts.button.setAttribute("aria-pressed", place === 0);
  parts.tags.replaceChildren(...row.tags.map((tag) => make("span", "df-tag", tag)));
  parts.chip.textContent = WORDS[row.state];
  parts.chip.dataset.state = row.state;
  parts.chip.title = row.message || "";
  const planned = row.max_steps ? ` / ${figure(row.max_steps, 0)}` : "";
  parts.text.textContent = row.step === null ? "–" : figure(row.step, 0) + planned;
  parts.bar.firstElementChild.style.width = 100 * (row.progress || 0) + "%";
  const started = row.started ? new Date(row.started * 1000) : null;
  const values = [
    row.left || "–", figure(row.loss, 3), figure(row.validation_loss, 3), figure(row.tau_estimate, 2), figure(row.decoded_tau, 2),
    figure(row.tokens_per_s, 0),
    started ? started.toLocaleString("en-GB", { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" }) : "–",
  ];
  values.forEach((value, i) => { parts.numbers[i].textContent = value; });
}

function draw() {
  const words = find(".df-runs-filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const visible = sorted(rows.filter((row) => {
    const text = [row.name, row.state, ...row.tags].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }));
  for (const cell of element.querySelectorAll("thead th[data-column]")) {
    cell.setAttribute("aria-sort", cell.dataset.column === sort.key ? sort.order : "none");
  }
  const body = find("tbody");
  const wanted = visible.map((row) => {
    if (!lines.has(row.name)) lines.set(row.name, newLine(row.name));
    fill(lines.get(row.name), row);
    return lines.get(row.name).line;
  });
  for (const name of [...lines.keys()]) if (!rows.some((row) => row.name === name)) lines.delete(name);
  // Rows that stay where they are keep focus and selection.
  if (wanted.length !== body.children.length || wanted.some((line, i) => body.children[i] !== line)) {
    const held = body.contains(document.activeElement) ? document.activeElement : null;
    body.replaceChildren(...wanted);
    if (held && held.isConnected) held.focus({ preventScroll: true });
  }
  const busy = rows.filter((row) => ["running", "starting"].includes(row.state)).length;
  const shown = visible.length === rows.length ? figure(rows.length, 0) : `${visible.length} of ${rows.length}`;
  find(".df-runs-count").textContent = rows.length ? `${shown} ${rows.length === 1 ? "run" : "runs"}, ${busy} active` : "";
  find(".df-runs-none").hidden = rows.length > 0;
  find(".df-runs-box").hidden = rows.length === 0;
}

function trouble(text) {
  const node = find(".df-trouble");
  node.hidden = !text;
  node.textContent = text;
}

async function look() {
  try {
    const answer = await ask(server.read_runs, { seen });
    if (find(".df-trouble").textContent === UNREACHABLE) trouble("");
    if (!answer) return;
    seen = answer.stamp;
    rows = answer.rows;
    find(".df-runs-count").title = answer.folder;
    draw();
    element.firstElementChild.dataset.ready = "true";
    // Nothing asked for in the address: the newest one that runs, else the newest.
    if (!chosen.names.length && rows.length) chosen.choose([(rows.find((row) => row.state === "running") || rows[0]).name]);
  } catch (error) {
    trouble(error.message);
  }
}

headers();
find(".df-runs-filter").addEventListener("input", draw);
window.addEventListener("dflash:runs", draw);
const refresh = every(2, look);
window.addEventListener("dflash:acted", refresh);
