// The conversation before the prompt: every turn can be edited or taken out. The value is a JSON list of messages.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const list = find(".df-turns");
const NAMES = { system: "System", user: "You", assistant: "Answer" };
let messages = [];
let written = null; // what this script itself put into the value

function keep() {
  written = JSON.stringify(messages);
  props.value = written;
  count();
}

function fit(box) {
  box.style.height = "auto";
  box.style.height = Math.min(220, box.scrollHeight + 2) + "px";
}

function turn(message, place) {
  const item = make("li", "df-turn " + message.role);
  const head = make("div", "df-turn-head");
  const remove = make("button", "df-button", "Remove");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove message ${place + 1}`);
  remove.addEventListener("click", () => {
    messages.splice(place, 1);
    keep();
    draw();
    (list.children[Math.min(place, messages.length - 1)]?.querySelector("textarea") || find(".df-clear")).focus();
  });
  head.append(make("span", "df-key", NAMES[message.role] || message.role), remove);
  const box = make("textarea");
  box.rows = 1;
  box.value = message.content;
  box.setAttribute("aria-label", `Message ${place + 1}, ${NAMES[message.role] || message.role}`);
  box.addEventListener("input", () => { messages[place].content = box.value; keep(); fit(box); });
  item.append(head, box);
  return item;
}

function count() {
  find(".df-count").textContent = messages.length ? `${messages.length} messages` : "";
  find(".df-empty").hidden = messages.length > 0;
  find(".df-hint").hidden = messages.length === 0;
  find(".df-clear").disabled = messages.length === 0;
}

function draw() {
  list.replaceChildren(...messages.map(turn));
  for (const box of list.querySelectorAll("textarea")) fit(box);
  list.scrollTop = list.scrollHeight;
  count();
}

function take() {
  if (props.value === written && written !== null) return; // our own edit: the boxes are right already
  written = null;
  messages = props.value ? JSON.parse(props.value) : [];
  draw();
}

find(".df-clear").addEventListener("click", () => { messages = []; keep(); draw(); });
new ResizeObserver(() => { for (const box of list.querySelectorAll("textarea")) fit(box); }).observe(list);
watch("value", take);
take();
