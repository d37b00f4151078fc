// The first chosen run: its state, command, checkpoints, notes and log; and what differs between all chosen ones.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
let detail = null; // of the runs in `shown`
let shown = "";
let seen = "";
let logSeen = "";
let edited = false;
let version = ""; // of the notes that are being edited: what arrives meanwhile is not what was seen

function trouble(text) {
  const node = find(".df-trouble");
  node.hidden = !text;
  node.textContent = text;
}

function cells(tag, values, words) {
  const row = make("tr");
  row.append(...values.map((value, i) => make(tag, words.includes(i) ? "df-left" : "", value)));
  return row;
}

function head() {
  const { row } = detail;
  find(".df-run-of").textContent = row.name;
  const chip = find(".df-run-words .df-state");
  chip.textContent = row.state;
  chip.dataset.state = row.state;
  find(".df-run-message").textContent = row.message;
  for (const action of ["stop", "abort", "queue", "resume"]) find(`.df-${action}`).hidden = !row[`can_${action}`];
  find(".df-run-command-box").hidden = !detail.command;
  find(".df-run-command").textContent = detail.command;
  setText(".df-run-config", detail.config || "There is no config.yaml.");
  setText(".df-run-environment", detail.environment || "There is no environment.json.");
  const rows = detail.checkpoints.map((one) => cells(
    "td", [one.name, figure(one.best_loss, 4), figure(one.size / 1e6, 1), [one.is_best ? "best" : "", one.problem].filter(Boolean).join(" ")], [0, 3]
  ));
  find(".df-checkpoints tbody").replaceChildren(...rows);
  find(".df-checkpoint-box").hidden = !rows.length;
  find(".df-no-checkpoints").hidden = rows.length > 0;
  const goesOn = ["queued", "starting", "running"].includes(row.state);
  find(".df-no-checkpoints").textContent = goesOn ? "None yet: the first one is written after checkpoint.every steps." : "It has none.";
}

// Only when it is another text: a selection in it stays.
function setText(selector, text) {
  const node = find(selector);
  if (node.textContent !== text) node.textContent = text;
}

function compare() {
  const { runs, rows, problem } = detail.compare;
  const alone = chosen.names.length < 2;
  find(".df-compare").hidden = alone && !problem;
  find(".df-compare-count").textContent = rows.length ? `${rows.length} ${rows.length === 1 ? "setting" : "settings"}` : "";
  const words = alone ? "" : rows.length ? "" : runs.length > 1 ? "Their settings are the same." : "";
  find(".df-compare-words").textContent = [problem, words].filter(Boolean).join(" ");
  find(".df-compare-box").hidden = !rows.length;
  const top = make("tr");
  top.append(make("th", "df-left", "Setting"), ...runs.map((name) => make("th", "df-left", name)));
  find(".df-compare thead").replaceChildren(top);
  find(".df-compare tbody").replaceChildren(...rows.map((row) => cells("td", row, row.map((_, i) => i))));
}

function notes() {
  find(".df-notes textarea").value = detail.notes.text;
  find(".df-notes-tags").value = detail.notes.tags;
  version = detail.notes.version;
  edited = false;
  find(".df-notes-state").textContent = "";
}

async function look() {
  const names = chosen.names;
  if (!names.length) return;
  const key = names.join("\n");
  try {
    const answer = await ask(server.read_run, { runs: names, seen: key === shown ? seen : "" });
    if (key !== chosen.names.join("\n")) return;
    element.firstElementChild.hidden = false;
    if (!answer) return;
    const other = !detail || detail.row.name !== names[0];
    detail = answer;
    seen = answer.stamp;
    shown = key;
    if (other) { trouble(""); find(".df-done").textContent = ""; logSeen = ""; }
    head();
    compare();
    if (other || (!edited && detail.notes.version !== version)) notes();
    element.firstElementChild.dataset.run = names[0];
    if (other) readLog();
  } catch (error) {
    // Of a run that was never shown there is nothing to do or to see; the curves' panel says why.
    element.firstElementChild.hidden = key !== shown;
    trouble(error.message);
  }
}

async function log() {
  const name = chosen.names[0];
  if (!name) return;
  const request = { run: name, pattern: find(".df-log-filter").value, source: find(".df-log-source").value };
  const key = JSON.stringify(request);
  const box = find(".df-log-lines");
  try {
    const answer = await ask(server.read_log, { ...request, seen: key === box.dataset.key ? logSeen : "" });
    if (!answer || name !== chosen.names[0]) return;
    logSeen = answer.stamp;
    box.dataset.key = key;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40 || !box.textContent;
    box.textContent = answer.lines.join("\n") || (request.pattern ? "No line holds that." : "It is empty.");
    if (atEnd) box.scrollTop = box.scrollHeight;
    const shownLines = `${figure(answer.lines.length, 0)} of ${figure(answer.matching, 0)} ${request.pattern ? "lines that hold it" : "lines"}`;
    const part = answer.searched < answer.size ? ` in the last ${figure(answer.searched / 2 ** 20, 0)} of ${figure(answer.size / 2 ** 20, 0)} MB` : "";
    find(".df-log-count").textContent = answer.size ? shownLines + part : "";
  } catch (error) {
    box.textContent = error.message;
    delete box.dataset.key;
  }
}

// Run an action of a button: what it says afterwards, or why it could not be done.
function pressed(selector, work) {
  const button = find(selector);
  button.addEventListener("click", async () => {
    button.disabled = true;
    trouble("");
    find(".df-done").textContent = "";
    try { find(".df-done").textContent = (await work()) || ""; } catch (error) { trouble(error.message); }
    button.disabled = false;
  });
}

function acted(action, words) {
  return async () => {
    await ask(server.act, { run: detail.row.name, action });
    window.dispatchEvent(new CustomEvent("dflash:acted"));
    return words;
  };
}

pressed(".df-stop", acted("stop", "Asked to stop: it saves a checkpoint first."));
pressed(".df-resume", acted("resume", "Resumed from its newest checkpoint."));
pressed(".df-queue", acted("queue", "Queued: it goes on when no other job runs."));
pressed(".df-abort", async () => {
  const { row } = await ask(server.act, { run: detail.row.name, action: "abort" });
  if (!row) chosen.choose(chosen.names.slice(1));
  window.dispatchEvent(new CustomEvent("dflash:acted"));
});
pressed(".df-copy", () => window.dflash.handOver(location.href, find(".df-copy")));
pressed(".df-csv", async () => { download(`${chosen.names[0]}.csv`, "text/csv", await ask(server.export_csv, { runs: chosen.names })); });
pressed(".df-html", async () => { download(`${chosen.names[0]}.html`, "text/html", await ask(server.export_page, { runs: chosen.names })); });
pressed(".df-png", () => { window.dispatchEvent(new CustomEvent("dflash:picture")); });
pressed(".df-save", async () => {
  const state = find(".df-notes-state");
  try {
    const [text, tags] = [find(".df-notes textarea").value, find(".df-notes-tags").value];
    detail.notes = await ask(server.save_notes, { run: detail.row.name, text, tags, version });
    notes();
    state.textContent = "Saved.";
    window.dispatchEvent(new CustomEvent("dflash:acted"));
  } catch (error) { state.textContent = error.message; }
});
for (const field of element.querySelectorAll(".df-notes .df-input")) {
  field.addEventListener("input", () => { edited = true; find(".df-notes-state").textContent = "Not saved yet."; });
}
const refresh = every(2, look);
const readLog = every(2, log);
let typing = null;
find(".df-log-filter").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(readLog, 200); });
find(".df-log-source").addEventListener("change", readLog);
window.addEventListener("dflash:runs", () => { refresh(); readLog(); });
window.addEventListener("dflash:acted", refresh);
