// Every setting of the config. Inputs are made once and kept, so that focus and cursor survive each answer.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const fields = new Map(); // setting -> its nodes
const sections = new Map();
const opened = new Set(); // sections of which all is shown
let view = null;
let showAll = false;
let onlyChanged = false;

function control(field) {
  if (field.kind === "choice" || field.kind === "bool") {
    const select = make("select");
    const choices = field.kind === "bool" ? ["true", "false"] : field.choices;
    for (const choice of choices) select.append(make("option", "", choice));
    return select;
  }
  const input = make("input");
  input.type = "text";
  input.spellcheck = false;
  input.autocomplete = "off";
  if (field.kind === "number") input.inputMode = "decimal";
  return input;
}

function build(field) {
  const box = make("div", "df-field" + (field.kind === "texts" ? " wide" : ""));
  const id = "df-" + field.setting.replace(".", "-");
  const label = make("label", "", field.key);
  label.htmlFor = id;
  const input = control(field);
  input.id = id;
  input.dataset.setting = field.setting;
  input.setAttribute("aria-describedby", id + "-about " + id + "-error");
  const reset = make("button", "df-reset", "Undo");
  reset.type = "button";
  reset.setAttribute("aria-label", "Undo the change of " + field.setting);
  const about = make("p", "df-field-about", field.about);
  about.id = id + "-about";
  const error = make("p", "df-field-error");
  error.id = id + "-error";
  error.setAttribute("role", "status");
  const nodes = { box, input, reset, about, error, label, field };
  const tell = (text) => window.dispatchEvent(new CustomEvent("dflash:setting", {
    detail: { setting: field.setting, text, given: nodes.field.given },
  }));
  // A list that was left alone stands at the value that holds, be it given or a default.
  input.addEventListener("input", () => tell(input.value.trim()));
  reset.addEventListener("click", () => { tell(nodes.field.given); input.value = shownText({ ...nodes.field, text: nodes.field.given }); input.focus(); });
  const line = make("div", "df-field-line");
  line.append(label, reset);
  box.append(line, input, error, about);
  fields.set(field.setting, nodes);
  return box;
}

const isSelect = (field) => field.kind === "choice" || field.kind === "bool";
const shownText = (field) => (isSelect(field) && !field.text ? field.resolved : field.text);

function buildSection(section) {
  const box = make("section", "df-section");
  box.id = "df-section-" + section.name;
  const head = make("div", "df-section-head");
  const more = make("button", "df-link df-more");
  more.type = "button";
  more.addEventListener("click", () => {
    if (!opened.delete(section.name)) opened.add(section.name);
    arrange();
  });
  head.append(make("h3", "", section.name), more);
  const grid = make("div", "df-field-grid");
  grid.append(...section.fields.map(build));
  const note = make("p", "df-note df-idle-note");
  const body = make("div");
  body.append(...(section.about ? [make("p", "df-note df-section-about", section.about)] : []), grid, note);
  box.append(head, body);
  const chip = make("button", "df-chip-button", section.name);
  chip.type = "button";
  chip.addEventListener("click", () => {
    if (box.hidden || ![...grid.children].some((child) => !child.hidden)) { opened.add(section.name); arrange(); }
    box.scrollIntoView({ block: "start" });
  });
  sections.set(section.name, { box, more, note, chip, grid });
  return box;
}

function update(field) {
  const nodes = fields.get(field.setting);
  nodes.field = field;
  if (nodes.input !== document.activeElement) nodes.input.value = shownText(field);
  if (!isSelect(field)) nodes.input.placeholder = field.resolved;
  nodes.box.classList.toggle("edited", field.edited);
  nodes.box.classList.toggle("faulty", field.complaints.length > 0);
  nodes.box.classList.toggle("idle", Boolean(field.idle));
  nodes.input.setAttribute("aria-invalid", field.complaints.length > 0);
  nodes.reset.hidden = !field.edited;
  nodes.reset.title = field.given ? "Back to " + field.given : "Back to the default, " + (field.default || "none");
  nodes.error.textContent = field.complaints.join(" ");
  nodes.about.textContent = field.idle ? field.idle : field.about + (field.about.includes("default:") || !field.default ? "" : `; default: ${field.default}`);
}

// Which settings are shown: the usual ones and those that say something; all of them on demand.
function arrange() {
  const wanted = find(".df-search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  let any = false;
  for (const section of view.sections) {
    const { box, more, note, chip } = sections.get(section.name);
    const all = showAll || opened.has(section.name) || wanted.length > 0;
    let visible = 0, kept = 0, idle = "";
    for (const field of section.fields) {
      const speaks = field.edited || field.complaints.length > 0;
      const usual = (field.usual || field.given !== "") && !field.idle;
      const said = (field.setting + " " + field.about).toLowerCase();
      const matches = wanted.every((word) => said.includes(word));
      const show = matches && (!onlyChanged || speaks) && (all || usual || speaks);
      fields.get(field.setting).box.hidden = !show;
      visible += show;
      kept += !usual && !speaks;
      idle = idle || (field.usual || section.fields.every((one) => one.idle) ? field.idle : "") || "";
    }
    any = any || visible > 0;
    const quiet = wanted.length > 0 || onlyChanged;
    box.hidden = visible === 0 && quiet;
    more.hidden = kept === 0 || showAll || quiet;
    more.textContent = opened.has(section.name) ? "fewer" : `${kept} more`;
    more.setAttribute("aria-expanded", opened.has(section.name));
    more.setAttribute("aria-label", `${section.name}: ${more.textContent}`);
    note.textContent = visible === 0 && section.fields.every((field) => field.idle) ? section.fields[0].idle : "";
    const changed = section.fields.filter((field) => field.edited).length;
    const faulty = section.fields.filter((field) => field.complaints.length > 0).length;
    chip.textContent = section.name + (faulty ? ` ${faulty} to mend` : changed ? ` ${changed} changed` : "");
    chip.classList.toggle("faulty", faulty > 0);
    chip.classList.toggle("edited", faulty === 0 && changed > 0);
  }
  find(".df-nothing").hidden = any;
  find(".df-nothing").textContent = onlyChanged ? "Nothing is changed yet." : "No setting has that in its name or description.";
}

function draw() {
  if (!props.value) return;
  view = JSON.parse(props.value);
  const known = view.sections.every((section) => section.fields.every((field) => fields.has(field.setting)));
  if (!known) {
    fields.clear();
    sections.clear();
    find(".df-fields").replaceChildren(...view.sections.map(buildSection));
    find(".df-sections").replaceChildren(...[...sections.values()].map(({ chip }) => chip));
  }
  const count = view.sections.reduce((sum, section) => sum + section.fields.length, 0);
  find(".df-search").placeholder = `Search ${count} settings`;
  view.sections.forEach((section) => section.fields.forEach(update));
  arrange();
}

find(".df-search").addEventListener("input", arrange);
find(".df-all").addEventListener("click", (event) => { showAll = !showAll; event.target.setAttribute("aria-pressed", showAll); arrange(); });
find(".df-changed").addEventListener("click", (event) => { onlyChanged = !onlyChanged; event.target.setAttribute("aria-pressed", onlyChanged); arrange(); });
window.addEventListener("dflash:show-setting", (event) => {
  const nodes = fields.get(event.detail);
  if (!nodes) return;
  nodes.box.hidden = false;
  nodes.input.focus();
  nodes.box.scrollIntoView({ block: "center" });
});
watch("value", draw);
draw();
