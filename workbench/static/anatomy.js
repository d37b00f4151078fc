// The conversation as tokens and the slots of the chosen block.
const { make, visible } = window.dflash;
const find = (selector) => element.querySelector(selector);
const box = find(".df-strip");

// What a token's tooltip tells the pointer, written and spoken below the strip.
function tell(token) {
  box.querySelector(".here")?.classList.remove("here");
  token.classList.add("here");
  find(".df-token-words").textContent = token.title;
  // Scrolls the strip only, never the page.
  const top = token.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  if (top + token.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + token.offsetHeight - box.clientHeight;
}

function strip(view) {
  const begins = new Map(view.starts.map((start, number) => [start, view.documents[number]]));
  const tokens = view.tokens.map((token, position) => {
    const border = view.starts.length > 1 && begins.has(position) ? make("div", "df-document", begins.get(position)) : null;
    const taught = token.taught ? " taught" : "";
    const inside = view.span && position >= view.span[0] && position < view.span[1] ? " inblock" : "";
    const starts = token.anchor !== null;
    const node = make(starts ? "button" : "span", "df-cell" + taught + inside + (starts ? " anchor" : ""), visible(token.text));
    node.title = `token ${position} (${visible(token.text)}): ${token.taught ? "carries loss" : "context only"}` + (starts ? `, anchor of block ${token.anchor}` : "");
    if (starts) {
      node.type = "button";
      node.setAttribute("aria-label", `block ${token.anchor} starts at token ${position}, ${token.text}`);
      node.setAttribute("aria-pressed", token.anchor === view.block);
      node.addEventListener("click", () => trigger("select", { block: token.anchor }));
    }
    // Spaces are drawn as dots, so the places where a line may break have to be said.
    return [border, token.text.startsWith(" ") ? make("wbr") : null, node, token.text.includes("\n") ? make("br") : null];
  });
  const scrolled = box.scrollTop;
  const held = box.contains(document.activeElement);
  box.replaceChildren(...tokens.flat().filter(Boolean));
  box.scrollTop = scrolled;
  if (held) box.querySelector('[aria-pressed="true"]')?.focus({ preventScroll: true });
}

// Rounded, but what is neither nothing nor all never reads 0 or 100.
function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %";
  if (share < 1 && share >= 0.995) return "> 99 %";
  return `${Math.round(100 * share)} %`;
}

function remember(query) {
  history.replaceState(history.state, "", window.location.pathname + (query && "?" + query));
}

function slots(view) {
  const most = Math.max(...view.slots.map((slot) => slot.weight), 1e-9);
  const total = view.slots.reduce((sum, slot) => sum + slot.weight, 0);
  find(".df-slots tbody").replaceChildren(...view.slots.map((slot) => {
    const line = make("tr");
    line.append(make("td", "", String(slot.slot)), make("td", "", String(slot.position)));
    const input = slot.slot === 0 ? [slot.input, "own"] : ["mask", "mask"];
    for (const [text, kind] of [input, [slot.label, slot.weight > 0 ? "acc" : "off"]]) {
      const cell = make("td", "df-left");
      if (text !== null) cell.append(make("span", "df-chip " + kind, visible(text))); else cell.textContent = "–";
      line.append(cell);
    }
    line.append(make("td", "", slot.weight.toFixed(3)));
    const share = make("td", "df-left");
    const bar = make("i", "df-weight");
    bar.style.width = Math.round((90 * slot.weight) / most) + "px";
    share.append(bar, make("span", "df-note", " " + percent(total ? slot.weight / total : 0)));
    line.append(share, make("td", "df-left", slot.keep ? "yes" : "dropped"), make("td", "df-left df-note", slot.reason));
    return line;
  }));
  find(".df-block-name").textContent = view.span
    ? `block ${view.block} of ${view.kept} kept · anchor at token ${view.span[0]} · mask token ${view.mask_token}`
    : `block ${view.block} is dropped: only ${view.kept} anchors were found`;
}

let opened = false; // the first view is what the address asks for

function draw() {
  if (!props.value) return;
  const view = JSON.parse(props.value);
  if (opened) remember(view.address);
  opened = true;
  const which = view.items > 1 ? `${view.packing ? "row" : "conversation"} ${view.item} of ${view.items} · ` : "";
  const padded = view.padding ? ` and ${view.padding} of padding` : "";
  const documents = view.documents.length > 1 ? `${view.documents.length} conversations in ` : "";
  find(".df-counts").textContent = which + documents + `${view.tokens.length} tokens${padded} · ${view.supervised} carry loss · ` +
    `${view.kept} of ${view.blocks} anchors placed among ${view.candidates} candidates`;
  strip(view);
  slots(view);
}
box.addEventListener("keydown", (event) => {
  const tokens = [...box.querySelectorAll(".df-cell")];
  const inside = document.activeElement.closest(".df-cell"); // an anchor that was reached with Tab
  const here = tokens.indexOf(inside || box.querySelector(".here"));
  const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (event.key === "Enter" && !inside) tokens[here]?.click();
  if (next === undefined) return;
  event.preventDefault();
  if (inside) box.focus({ preventScroll: true });
  tell(tokens[Math.max(0, Math.min(tokens.length - 1, next))]);
});
box.addEventListener("focusin", (event) => { if (event.target !== box) tell(event.target); });
find(".df-copy").addEventListener("click", () => trigger("link"));
window.addEventListener("dflash:anatomy-link", (event) => {
  remember(event.detail);
  window.dflash.handOver(window.location.href, find(".df-copy"));
});
watch("value", draw);
draw();
