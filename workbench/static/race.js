// Two lanes of text: drawn step by step while the engine runs, replayed afterwards at the recorded pace.
const { make, seconds, milliseconds, number } = window.dflash;
const lanes = {};
for (const node of element.querySelectorAll(".df-lane")) {
  lanes[node.dataset.lane] = {
    text: node.querySelector(".df-text"), bar: node.querySelector(".df-bar i"), time: node.querySelector(".df-time"),
    stats: node.querySelector(".df-stats"), shown: 0, key: "", ghost: null,
  };
}
const find = (selector) => element.querySelector(selector);
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
let race = null;
let pace = 1;
let replay = null;
let stopped = null; // the race that was stopped: pictures of it that are still on their way are not drawn

function clear(lane) {
  lane.text.replaceChildren();
  lane.shown = 0;
  lane.ghost = null;
}

function landed(step, name) {
  const block = make("span", "df-block");
  block.dataset.step = step.index;
  step.emitted.forEach((piece, place) => {
    const origin = name === "draft" ? (place < step.accepted ? "acc" : "own") : "plain";
    block.append(make("span", "df-tok " + origin, piece));
  });
  return block;
}

// Show the first `count` steps; `guess` are the proposed pieces of the step in flight.
function show(name, trace, count, guess) {
  const lane = lanes[name];
  if (count < lane.shown) clear(lane);
  if (lane.ghost) { lane.ghost.remove(); lane.ghost = null; }
  if (count > lane.shown) {
    const atEnd = lane.text.scrollHeight - lane.text.scrollTop - lane.text.clientHeight < 60;
    lane.text.querySelector(".df-block.now")?.classList.remove("now");
    for (; lane.shown < count; lane.shown++) lane.text.append(landed(trace.steps[lane.shown], name));
    if (name === "draft") lane.text.lastElementChild?.classList.toggle("now", count < trace.steps.length || !trace.done);
    if (atEnd) lane.text.scrollTop = lane.text.scrollHeight;
  }
  if (guess && guess.length) {
    lane.ghost = make("span", "df-tok ghost", guess.join(""));
    lane.text.append(lane.ghost);
  }
}

function longest() {
  return Math.max(race.target.total_s || 0, race.draft.total_s || 0) || 1;
}

function clock(name, elapsed) {
  const trace = race[name];
  const lane = lanes[name];
  lane.bar.style.width = Math.min(100, (100 * elapsed) / longest()) + "%";
  lane.time.textContent = seconds(elapsed);
  lane.time.classList.toggle("done", Boolean(trace.done) && elapsed >= trace.total_s);
}

const MEANINGS = {
  "tokens": "tokens of the answer",
  "target forwards": "forwards of the target after the prompt was read; each costs about the same",
  "tokens per forward": "tau, the acceptance length = tokens / target forwards after the prompt",
  "first token": "time from the request to the first token",
  "tokens per second": "tokens after the first / seconds after the first token, measured in the engine",
};

function stats(name) {
  const trace = race[name];
  const rows = [
    ["tokens per second", number(trace.tok_s, 1), "tok/s"], ["first token", number(trace.ttft_s * 1000, 0), "ms"],
    ["target forwards", trace.forwards, ""], ["tokens per forward", number(trace.tau, 2), "τ"],
  ];
  const known = trace.done || trace.steps.length > 0;
  lanes[name].stats.replaceChildren(...rows.map(([label, value, unit]) => {
    const row = make("div");
    const term = make("dt", "", label);
    term.title = MEANINGS[label];
    const data = make("dd", "", known && value != null ? String(value) : "–");
    data.append(make("small", "", unit));
    row.append(term, data);
    return row;
  }));
}

function badge() {
  const node = find(".df-badge");
  const verdict = race.verdict;
  find(".df-badge-box").hidden = !verdict;
  if (!verdict) return;
  node.className = "df-badge " + verdict.state;
  node.textContent = { identical: "✓ ", differs: "≠ ", sampling: "~ ", pending: "… " }[verdict.state] + verdict.text;
  find(".df-tip").textContent = verdict.detail;
  find(".df-parted").textContent = verdict.note || "";
}

// Both lanes as they were `elapsed` seconds after the request.
function at(elapsed) {
  for (const name of ["target", "draft"]) {
    const trace = race[name];
    let count = 0;
    // At the end all of them: summed in another order, the last step may end a rounding error behind the total.
    const over = elapsed >= trace.total_s;
    while (count < trace.steps.length && (over || trace.steps[count].end_s <= elapsed)) count++;
    const next = trace.steps[count];
    const began = count ? trace.steps[count - 1].end_s : 0;
    const guessing = name === "draft" && next && elapsed >= began + next.draft_s;
    show(name, trace, count, guessing ? next.proposed : null);
    clock(name, Math.min(elapsed, trace.total_s));
  }
  find(".df-seek").value = Math.round((1000 * elapsed) / longest());
  find(".df-seek").setAttribute("aria-valuetext", `${elapsed.toFixed(2)} of ${longest().toFixed(2)} seconds`);
}

const moment = (now) => replay.offset + (replay.running ? ((now - replay.start) / 1000) * pace : 0);

function frame(now) {
  if (!replay || !replay.running) return;
  const elapsed = moment(now);
  at(elapsed);
  if (elapsed >= longest()) finish(); else requestAnimationFrame(frame);
}

function label() {
  find(".df-play").textContent = !replay ? "Replay" : replay.running ? "Pause" : "Go on";
  find(".df-skip").hidden = !replay;
}

function finish() {
  replay = null;
  label();
  at(longest());
  for (const name of ["target", "draft"]) {
    show(name, race[name], race[name].steps.length, null);
    lanes[name].text.querySelector(".df-block.now")?.classList.remove("now");
    clock(name, race[name].total_s);
  }
}

const replayable = () => Boolean(race && race.phase === "done" && race.target.done && race.draft.done);

function start(offset) {
  if (!replayable()) return;
  for (const name of ["target", "draft"]) { clear(lanes[name]); lanes[name].text.scrollTop = 0; }
  replay = { start: performance.now(), offset, running: true };
  label();
  requestAnimationFrame(frame);
}

function toggle() {
  if (!replay) return start(0);
  const now = performance.now();
  replay = { start: now, offset: moment(now), running: !replay.running };
  label();
  requestAnimationFrame(frame);
}

function seek(elapsed) {
  if (!replayable()) return;
  replay = { start: performance.now(), offset: elapsed, running: Boolean(replay && replay.running) };
  label();
  at(elapsed);
}

function draw(first) {
  const before = race;
  // Values travel as JSON text: Gradio watches every field of an object, which is slow for a long trace.
  race = props.value ? JSON.parse(props.value) : null;
  if (!race || race.id === stopped) return;
  const restarted = !before || before.id !== race.id;
  if (restarted) { replay = null; label(); Object.values(lanes).forEach(clear); }
  Object.assign(element.firstElementChild.dataset, { phase: race.phase, race: race.id, recorded: Boolean(race.recorded) });
  const recorded = find(".df-recorded");
  recorded.hidden = !race.recorded;
  if (race.recorded) {
    recorded.textContent = [race.recorded.kind || "Recorded", race.recorded.machine, race.recorded.date].filter(Boolean).join(" · ");
    recorded.title = race.recorded.command;
  }
  find(".df-quote").textContent = race.prompt;
  find(".df-quote").title = race.prompt;
  const before_it = race.settings.history?.length || 0;
  find(".df-behind").textContent = before_it ? `behind ${before_it} messages` : "";
  find(".df-number b").textContent = race.speedup == null ? "–" : race.speedup.toFixed(2);
  find(".df-forwards").textContent = race.speedup == null ? ""
    : `${race.draft.forwards} target forwards instead of ${race.target.forwards}`;
  find(".df-beside").textContent = race.beside || "";
  const status = find(".df-status");
  status.textContent = race.message || "";
  status.classList.toggle("bad", race.phase === "error");
  const done = race.phase === "done";
  find(".df-replay").classList.toggle("off", !done);
  for (const control of find(".df-replay").querySelectorAll("button, input")) control.disabled = !done;
  badge();
  for (const name of ["target", "draft"]) stats(name);
  if (replay) return;
  if (restarted) element.querySelectorAll(".df-block.chosen").forEach((block) => block.classList.remove("chosen"));
  if (first && done && race.recorded && !calm.matches) return start(0);
  for (const name of ["target", "draft"]) {
    show(name, race[name], race[name].steps.length, null);
    if (race[name].done) lanes[name].text.querySelector(".df-block.now")?.classList.remove("now");
    clock(name, race[name].total_s || 0);
  }
  // On a narrow screen the button is below the lanes: bring them into view when a run begins.
  const box = element.getBoundingClientRect();
  if (restarted && !first && (box.bottom < 120 || box.top < -80)) element.scrollIntoView({ block: "start" });
}

find(".df-play").addEventListener("click", toggle);
find(".df-skip").addEventListener("click", () => { finish(); find(".df-play").focus(); });
find(".df-seek").addEventListener("input", (event) => seek((Number(event.target.value) / 1000) * longest()));
// Space on a lane plays and pauses, as in every player.
for (const lane of Object.values(lanes)) {
  lane.text.addEventListener("keydown", (event) => {
    if (event.key !== " " || !replayable()) return;
    event.preventDefault();
    toggle();
  });
}
for (const button of element.querySelectorAll("[data-pace]")) {
  button.addEventListener("click", () => {
    const now = performance.now();
    if (replay) replay = { ...replay, start: now, offset: moment(now) };
    pace = Number(button.dataset.pace);
    for (const other of element.querySelectorAll("[data-pace]")) other.setAttribute("aria-pressed", other === button);
  });
}
window.addEventListener("dflash:step", (event) => {
  if (event.detail.source === "start") return;
  for (const block of lanes.draft.text.querySelectorAll(".df-block")) {
    const chosen = Number(block.dataset.step) === event.detail.index;
    block.classList.toggle("chosen", chosen);
    if (chosen && !replay) lanes.draft.text.scrollTop = block.offsetTop - lanes.draft.text.clientHeight / 2;
  }
});
window.addEventListener("dflash:stopped", () => {
  if (!race || ["done", "error"].includes(race.phase)) return;
  stopped = race.id;
  element.firstElementChild.dataset.phase = "stopped";
  find(".df-status").textContent = "Stopped.";
});
watch("value", () => draw(false));
draw(true);
