// Jobs: queued, running and the latest that are over. Rows are kept by name, so that an opened log stays open.
const { make, number } = window.dflash;
const find = (selector) => element.querySelector(selector);
const rows = new Map();
let situation = null; // what a plan hangs on: whether something runs, and data that is being made
const WORDS = {
  queued: "queued", starting: "starting", running: "running", stopping: "stopping", done: "finished", failed: "failed",
  stopped: "stopped", lost: "lost",
};
const ACTIONS = {
  stop: ["Stop", "Save a checkpoint and stop"], kill: ["Kill now", "End it at once, without a checkpoint"],
  resume: ["Resume", "Go on from the newest checkpoint"],
  queue: ["Queue", "Go on from the newest checkpoint when no other job runs"], abort: ["Abort", "Take it out of the queue"],
};
const KINDS = { train: "training", data: "making data", evaluate: "evaluation", benchmark: "block sizes" };

const ago = (seconds) => {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} d`;
};

function build(job) {
  const box = make("li", "df-job");
  const nodes = {
    box, name: make("a", "df-job-name"), state: make("span", "df-state"), bar: make("i"), words: make("span", "df-note df-job-words"),
    actions: make("span", "df-job-actions"), problem: make("p", "df-job-problem"), log: make("details", "df-table df-job-log"),
  };
  const track = make("div", "df-track-bar");
  track.append(nodes.bar);
  nodes.track = track;
  nodes.pre = make("pre");
  nodes.pre.tabIndex = 0;
  nodes.log.append(make("summary", "", "The end of its log"), nodes.pre);
  const head = make("div", "df-job-head");
  head.append(nodes.name, nodes.state, nodes.words, nodes.actions);
  box.append(head, track, nodes.problem, nodes.log);
  rows.set(job.name, nodes);
}

function inWords(job, now) {
  const parts = [KINDS[job.kind] || job.kind];
  if (job.place) parts.push(job.place === 1 ? "next in the queue" : `number ${job.place} in the queue`);
  if (job.step !== null && job.max_steps) parts.push(`step ${job.step.toLocaleString("en")} of ${job.max_steps.toLocaleString("en")}`);
  if (job.state === "running" && job.eta_seconds !== null) parts.push(`about ${ago(job.eta_seconds)} left`);
  if (job.loss !== null) parts.push(`loss ${number(job.loss, 3)}`);
  if (job.tau !== null) parts.push(`estimated tau ${number(job.tau, 2)}`);
  if (["starting", "running", "stopping"].includes(job.state) && job.started) parts.push(`for ${ago(now - job.started)}`);
  if (job.ended) parts.push(`${ago(now - job.ended)} ago`);
  return parts.join(" · ");
}

function update(job, now) {
  if (!rows.has(job.name)) build(job);
  const nodes = rows.get(job.name);
  nodes.box.dataset.state = job.state;
  nodes.box.dataset.name = job.name;
  nodes.name.textContent = job.name;
  if (job.kind === "train" && job.has_run) nodes.name.href = "/runs?run=" + encodeURIComponent(job.name); else nodes.name.removeAttribute("href");
  nodes.state.textContent = WORDS[job.state] || job.state;
  nodes.state.className = "df-state " + job.state;
  nodes.words.textContent = inWords(job, now);
  nodes.track.hidden = job.progress === null || !["starting", "running", "stopping"].includes(job.state);
  nodes.bar.style.width = 100 * (job.progress || 0) + "%";
  nodes.problem.textContent = job.problem;
  nodes.problem.hidden = !job.problem;
  const key = job.actions.join();
  if (nodes.actions.dataset.key !== key) {
    nodes.actions.dataset.key = key;
    nodes.actions.replaceChildren(...job.actions.map((action) => {
      const button = make("button", "df-button", ACTIONS[action][0]);
      button.type = "button";
      button.title = ACTIONS[action][1];
      button.setAttribute("aria-label", `${ACTIONS[action][0]} ${job.name}`);
      button.addEventListener("click", () => { button.disabled = true; nodes.actions.dataset.key = ""; trigger("submit", { action, name: job.name }); });
      return button;
    }));
  }
  nodes.log.hidden = !job.tail;
  if (nodes.pre.textContent !== job.tail) nodes.pre.textContent = job.tail;
  return nodes.box;
}

function draw() {
  if (!props.value) return;
  const { jobs, now } = JSON.parse(props.value);
  const active = jobs.filter((job) => ["starting", "running", "stopping"].includes(job.state)).length;
  const waiting = jobs.filter((job) => job.state === "queued").length;
  const now_so = String(active > 0) + jobs.filter((job) => job.kind === "data").map((job) => job.name + job.state).sort();
  if (situation !== null && situation !== now_so) window.dispatchEvent(new CustomEvent("dflash:ask-again"));
  situation = now_so;
  const list = find(".df-job-list");
  const boxes = jobs.map((job) => update(job, now));
  // Moving a node would take the focus from the button in it.
  if (boxes.length !== list.children.length || boxes.some((box, place) => list.children[place] !== box)) list.replaceChildren(...boxes);
  const present = new Set(jobs.map((job) => job.name));
  for (const name of [...rows.keys()]) if (!present.has(name)) rows.delete(name);
  find(".df-jobs-note").textContent = jobs.length
    ? `${active} running, ${waiting} queued. Runs go on when this page or the workbench is closed.`
    : "Nothing yet. What you start here goes on when this page or the workbench is closed.";
}
watch("value", draw);
draw();
