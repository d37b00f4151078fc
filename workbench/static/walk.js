// Keyboard for a heatmap: arrow keys move a frame over its cells, and what a cell says is written and spoken below it.
const { make } = window.dflash;
const setting = JSON.parse(props.value);
const pad = element.querySelector(".df-walk-pad");
const words = element.querySelector(".df-walk-words");
const frame = make("div", "df-walk-frame");
let plot = null;
let place = { row: 0, column: 0 };

element.querySelector(".df-walk-help").textContent =
  "Focus here: ← ↑ → ↓ move by one, Page Up and Page Down by ten, Home and End to the edges." + (setting.does ? ` ${setting.does}.` : "");

const cells = () => plot?.data?.[0]?.z;

function text() {
  const found = plot.data[0].customdata?.[place.row]?.[place.column] ?? "";
  // Line breaks and escapes are Plotly's; the reader gets the plain sentence.
  const node = document.createElement("textarea");
  node.innerHTML = found.replace(/<br>/g, " ");
  return node.value;
}

function mark() {
  const layout = plot?._fullLayout;
  if (!layout?.xaxis || !frame.isConnected) return;
  const { xaxis, yaxis } = layout;
  const [left, right] = [place.column - 0.5, place.column + 0.5].map((x) => xaxis._offset + xaxis.l2p(x));
  const [top, bottom] = [place.row - 0.5, place.row + 0.5].map((y) => yaxis._offset + yaxis.l2p(y)).sort((a, b) => a - b);
  Object.assign(frame.style, { left: left + "px", width: Math.max(3, right - left) + "px", top: top + "px", height: Math.max(3, bottom - top) + "px" });
  // Keep the frame in view where the figure scrolls in its box.
  const box = plot.parentElement;
  if (box && box.scrollWidth > box.clientWidth) box.scrollLeft = Math.max(0, left - box.clientWidth / 2);
}

function say() {
  if (!cells()) return;
  place = { row: Math.max(0, Math.min(cells().length - 1, place.row)), column: Math.max(0, Math.min(cells()[0].length - 1, place.column)) };
  if (!frame.isConnected) plot.append(frame);
  words.textContent = text();
  mark();
}

function choose() {
  if (setting.does && cells()) trigger("select", place);
}

function attach(found) {
  plot = found;
  frame.remove();
  words.textContent = "";
  plot.on("plotly_hover", (event) => {
    const point = event.points[0];
    place = { row: point.y, column: point.x };
    words.textContent = text();
  });
  plot.on("plotly_click", (event) => {
    place = { row: event.points[0].y, column: event.points[0].x };
    choose();
  });
  plot.on("plotly_afterplot", mark);
  if (document.activeElement === pad) say();
}

pad.addEventListener("focus", say);
pad.addEventListener("blur", () => frame.remove());
pad.addEventListener("keydown", (event) => {
  if (!cells()) return;
  const last = { row: cells().length - 1, column: cells()[0].length - 1 };
  const moved = {
    ArrowLeft: { column: place.column - 1 }, ArrowRight: { column: place.column + 1 },
    ArrowUp: { row: place.row - 1 }, ArrowDown: { row: place.row + 1 },
    PageUp: { row: place.row - 10 }, PageDown: { row: place.row + 10 },
    Home: event.ctrlKey ? { row: 0, column: 0 } : { column: 0 }, End: event.ctrlKey ? last : { column: last.column },
  }[event.key];
  if (event.key === "Enter") { event.preventDefault(); choose(); return; }
  if (!moved) return;
  event.preventDefault();
  place = { ...place, ...moved };
  say();
});

// Gradio puts a new figure in place of the old one, and Plotly makes it interactive a little later.
function look() {
  const found = document.querySelector(`#${setting.plot} .js-plotly-plot`);
  if (found && found !== plot && found.on && found._fullLayout?.xaxis) attach(found);
}
const waiting = setInterval(() => { if (element.isConnected) look(); else clearInterval(waiting); }, 200);
