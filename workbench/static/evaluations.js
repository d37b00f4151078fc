// Evaluations: queued, running and the latest that are over. The panel is away while there is nothing to tell.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const ACTIONS = { stop: "Stop", abort: "Take it out", resume: "Go on" };
const WORDS = { done: "finished" };
const KINDS = { evaluate: "evaluation", benchmark: "block sizes" };
const opened = new Set();

const span = (seconds) => (seconds < 90 ? `${Math.max(0, Math.round(seconds))} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);

function inWords(job, now) {
  const parts = [KINDS[job.kind]];
  if (job.place) parts.push(job.place === 1 ? "next in the queue" : `number ${job.place} in the queue`);
  if (job.total) parts.push(`${job.done} of ${job.total} prompts`);
  if (job.state === "running" && job.started) {
    const passed = now - job.started;
    parts.push(`for ${span(passed)}`);
    if (job.done >= 2 && job.done < job.total) parts.push(`about ${span((passed / job.done) * (job.total - job.done))} left`);
  }
  if (job.ended) parts.push(`${span(now - job.ended)} ago`);
  return parts.join(" · ");
}

function row(job, now) {
  const box = make("li", "df-job");
  box.dataset.name = job.name;
  box.dataset.state = job.state;
  const head = make("div", "df-job-head");
  const name = make(job.result ? "a" : "span", "df-job-name", job.result || job.name);
  if (job.result) name.href = "/acceptance?result=" + encodeURIComponent(job.result);
  const actions = make("span", "df-job-actions");
  for (const action of job.actions) {
    const button = make("button", "df-button", ACTIONS[action]);
    button.type = "button";
    button.dataset.action = action;
    button.setAttribute("aria-label", `${ACTIONS[action]}: ${job.name}`);
    button.addEventListener("click", () => { button.disabled = true; trigger("submit", { action, name: job.name }); });
    actions.append(button);
  }
  head.append(name, make("span", "df-state " + job.state, WORDS[job.state] || job.state), make("span", "df-note df-job-words", inWords(job, now)), actions);
  box.append(head);
  if (job.state === "running" && job.total) {
    const track = make("div", "df-track-bar"), bar = make("i");
    track.setAttribute("role", "progressbar");
    track.setAttribute("aria-label", `Prompts of ${job.name}`);
    track.setAttribute("aria-valuenow", Math.round((100 * job.done) / job.total));
    bar.style.width = (100 * job.done) / job.total + "%";
    track.append(bar);
    box.append(track);
  }
  if (job.problem) box.append(make("p", "df-job-problem", job.problem));
  if (job.tail) {
    const log = make("details", "df-table df-job-log"), pre = make("pre", "", job.tail);
    pre.tabIndex = 0;
    log.open = opened.has(job.name);
    log.addEventListener("toggle", () => { if (log.open) opened.add(job.name); else opened.delete(job.name); });
    log.append(make("summary", "", "The end of its log"), pre);
    box.append(log);
  }
  return box;
}

function draw() {
  const { jobs, now } = props.value ? JSON.parse(props.value) : { jobs: [], now: 0 };
  find(".df-evaluations").hidden = !jobs.length;
  const held = element.contains(document.activeElement) ? document.activeElement : null;
  const key = held && held.dataset.action && [held.closest(".df-job").dataset.name, held.dataset.action];
  find(".df-job-list").replaceChildren(...jobs.map((job) => row(job, now)));
  if (key) find(`.df-job[data-name="${CSS.escape(key[0])}"] [data-action="${key[1]}"]`)?.focus();
  find(".df-evaluations-note").textContent = "They go on when this page or the workbench is closed. Decoding beside one spoils its times.";
}
watch("value", draw);
draw();
