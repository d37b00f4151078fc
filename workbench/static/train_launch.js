// The request: where a config comes from and what is changed in it. Other panels tell it of edits; it asks the server.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const QUIET = 300; // ms without an edit before the plan is made anew
let request = null;
let serial = 0; // of the last edit here
let timer = null;
let view = null;
let figures = null; // which ones the page shows: the same need not be drawn again

function ask(delay) {
  serial += 1;
  clearTimeout(timer);
  element.dataset.stale = "true";
  find(".df-start").disabled = find(".df-queue").disabled = true;
  timer = setTimeout(() => trigger("input", { request: { ...request, serial }, figures }), delay);
}

function remember() {
  const query = new URLSearchParams();
  if (request.origin.startsWith("run:")) query.set("run", request.origin.slice(4)); else query.set("from", request.origin);
  for (const [setting, text] of Object.entries(request.settings)) query.set(setting, text);
  if (request.name) query.set("name", request.name);
  query.set("ranks", request.ranks);
  history.replaceState(history.state, "", window.location.pathname + "?" + query);
}

window.addEventListener("dflash:setting", (event) => {
  if (!request) return;
  const { setting, text, given } = event.detail;
  if (text === given) delete request.settings[setting]; else request.settings[setting] = text;
  ask(QUIET);
});
window.addEventListener("dflash:ask-again", () => ask(0));
window.addEventListener("dflash:refused", () => {
  find(".df-verdict").textContent = "The last change cannot be used: see the message.";
  find(".df-verdict").dataset.ready = "false";
});
window.addEventListener("dflash:start-from", (event) => {
  request = { origin: event.detail, settings: {}, name: "", ranks: null }; // as many as suit it
  ask(0);
  element.scrollIntoView({ block: "start" });
});
find(".df-origin").addEventListener("change", (event) => {
  request = { origin: event.target.value, settings: {}, name: "", ranks: null };
  ask(0);
});
find(".df-run-name").addEventListener("input", (event) => { request.name = event.target.value.trim(); ask(QUIET); });
find(".df-ranks").addEventListener("input", (event) => { request.ranks = Number(event.target.value) || 1; ask(QUIET); });
const act = (action) => {
  for (const button of element.querySelectorAll(".df-launch-buttons button, .df-make-data")) button.disabled = true;
  trigger("submit", { action, request: view.planned });
};
find(".df-start").addEventListener("click", () => act("start"));
find(".df-queue").addEventListener("click", () => act("queue"));
find(".df-make-data").addEventListener("click", () => act("make_data"));
element.querySelectorAll(".df-command").forEach(window.dflash.copies);

function origins() {
  const groups = view.origins.filter((group) => group.choices.length).map((group) => {
    const node = make("optgroup");
    node.label = group.group;
    node.append(...group.choices.map(([value, label]) => {
      const option = make("option", "", label);
      option.value = value;
      return option;
    }));
    return node;
  });
  const select = find(".df-origin");
  if (select !== document.activeElement || select.options.length === 0) select.replaceChildren(...groups);
  select.value = request.origin;
}

function trouble() {
  find(".df-trouble").hidden = view.trouble.length === 0;
  find(".df-trouble ul").replaceChildren(...view.trouble.map(({ sentence, setting }) => {
    const line = make("li", "", sentence);
    if (setting) {
      const button = make("button", "df-link", "Show the setting");
      button.type = "button";
      button.addEventListener("click", () => window.dispatchEvent(new CustomEvent("dflash:show-setting", { detail: setting })));
      line.append(" ", button);
    }
    return line;
  }));
  find(".df-make").hidden = view.make.length === 0;
  find(".df-make pre").textContent = view.make.join("\n");
}

function draw() {
  if (!props.value) return;
  const answered = JSON.parse(props.value);
  figures = answered.figures; // they come with every answer
  if (answered.request.serial !== undefined && answered.request.serial < serial) return; // an older edit's answer
  view = answered;
  const { serial: _, ...known } = view.request;
  request = known;
  element.dataset.stale = "false";
  origins();
  const name = find(".df-run-name");
  if (name !== document.activeElement) name.value = request.name;
  name.placeholder = view.name;
  const ranks = find(".df-ranks");
  if (ranks !== document.activeElement) ranks.value = view.ranks;
  ranks.disabled = view.ranks_fixed !== "";
  ranks.title = view.ranks_fixed || view.ranks_about;
  find(".df-ranks-name").textContent = view.ranks_name;
  find(".df-about").textContent = view.about;
  find(".df-verdict").textContent = view.verdict;
  find(".df-verdict").dataset.ready = view.can_queue;
  find(".df-start").disabled = !view.ready;
  find(".df-queue").disabled = !view.can_queue;
  find(".df-make-data").disabled = !view.can_make;
  find(".df-queue").classList.toggle("df-primary", view.busy);
  find(".df-start").classList.toggle("df-primary", !view.busy);
  find(".df-shown-command pre").textContent = view.command;
  find(".df-yaml pre").textContent = view.yaml;
  trouble();
  remember();
}
watch("value", draw);
draw();
