// The list of drafts and settings to compare, and the table of what was measured.
const { make, number, milliseconds } = window.dflash;
const find = (selector) => element.querySelector(selector);
let view = null;

function chip(entry, place) {
  const item = make("span", "df-entry");
  item.setAttribute("role", "listitem");
  const remove = make("button", "df-remove", "×");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove ${entry.label} from the list`);
  remove.addEventListener("click", () => trigger("remove", { place }));
  item.append(make("span", "", entry.label), remove);
  return item;
}

function range(values, digits) {
  if (values.length < 2) return "";
  return ` (${Math.min(...values).toFixed(digits)}–${Math.max(...values).toFixed(digits)})`;
}

function line(row, most) {
  const node = make("tr", row.yardstick ? "df-yardstick" : "");
  const speed = make("td", "df-left");
  const bar = make("i", "df-weight " + row.kind);
  bar.style.width = Math.max(2, Math.round((90 * (row.speedup || 0)) / most)) + "px";
  const ratio = make("span", "", row.speedup == null ? "–" : `${row.speedup.toFixed(2)}×`);
  speed.append(bar, ratio, make("span", "df-note", range(row.speedup_rounds, 2)));
  const same = make("td", "df-left df-note", row.verdict);
  if (row.identical !== null) same.prepend(make("b", row.identical ? "df-same" : "df-other", row.identical ? "✓ " : "≠ "));
  node.append(make("td", "df-left", row.label), make("td", "df-left df-note", row.engine), speed,
    make("td", "", number(row.tok_s, 1) + range(row.tok_s_rounds, 1)), make("td", "", number(row.tau, 2)),
    make("td", "", String(row.forwards)), make("td", "", milliseconds(row.time_to_first_token_s)),
    make("td", "", String(row.tokens)), same);
  return node;
}

function draw() {
  if (!props.value) return;
  view = JSON.parse(props.value);
  element.firstElementChild.dataset.phase = view.phase;
  const list = find(".df-list");
  const held = [...list.querySelectorAll("button")].indexOf(document.activeElement); // whoever removes one goes on there
  list.replaceChildren(...view.entries.map(chip));
  if (!view.entries.length) {
    const note = make("span", "df-note", "No settings in the list yet: press “Add these settings”.");
    note.setAttribute("role", "listitem"); // a list without items is no list to a screen reader
    list.append(note);
  }
  if (held >= 0) {
    const left = list.querySelectorAll("button");
    (left[Math.min(held, left.length - 1)] || document.querySelector("#add_way")).focus();
  }
  const most = Math.max(...view.rows.map((row) => row.speedup || 0), 1);
  find("tbody").replaceChildren(...view.rows.map((row) => line(row, most)));
  find(".df-result").hidden = !view.rows.length;
  find(".df-export").hidden = view.phase !== "done";
  find(".df-beside").textContent = view.rows[0]?.beside || "";
  const status = find(".df-status");
  status.textContent = view.message;
  status.classList.toggle("bad", view.phase === "error");
}

find(".df-export").addEventListener("click", () => {
  window.dflash.download("dflash-ways.json", { ...view.about, rows: view.rows });
});
window.addEventListener("dflash:ways-stopped", () => {
  if (!view || view.phase !== "running") return;
  element.firstElementChild.dataset.phase = "stopped";
  find(".df-status").textContent = "Stopped.";
});
watch("value", draw);
draw();
