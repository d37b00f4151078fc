// What the settings amount to: numbers, devices and remarks.
const { make } = window.dflash;
const find = (selector) => element.querySelector(selector);
const ROLES = { serves: "serves", trains: "trains", both: "serves and trains" };

function draw() {
  if (!props.value) return;
  const view = JSON.parse(props.value);
  find(".df-numbers").replaceChildren(...view.numbers.map(({ label, value, unit, about }) => {
    const box = make("div");
    box.title = about;
    const term = make("dt", "", label);
    const amount = make("dd", "", value);
    if (unit) amount.append(make("span", "df-unit", " " + unit));
    box.append(term, amount);
    return box;
  }));
  find(".df-devices").replaceChildren(...view.devices.map(({ name, role, words }) => {
    const item = make("li", "df-device " + role);
    item.title = words;
    item.append(make("b", "", name), make("span", "", ROLES[role]));
    return item;
  }));
  find(".df-devices").hidden = view.devices.length < 2;
  find(".df-remarks").replaceChildren(...view.remarks.map((text) => make("li", "", text)));
  find(".df-remarks").hidden = view.remarks.length === 0;
}
watch("value", draw);
draw();
