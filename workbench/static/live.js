// Asking the workbench from a component, and asking again while somebody looks. Included before a component's script.
const UNREACHABLE = "The workbench does not answer: this page goes on asking. Runs are not touched by that.";

// The value of an answer; a sentence from the server, or that it is gone, is thrown as an Error.
async function ask(call, request) {
  let text;
  try { text = await call(request); } catch (error) { throw new Error(UNREACHABLE); }
  if (typeof text !== "string") throw new Error(UNREACHABLE);
  const answer = JSON.parse(text);
  if (answer.error) throw new Error(answer.error);
  return answer.value;
}

// Do `work` now, then again this many seconds after it ended, while the tab is seen. Returns a function that does it at once.
function every(seconds, work) {
  let timer = null;
  let busy = false;
  let again = false;
  async function run() {
    clearTimeout(timer);
    if (busy) { again = true; return; }
    busy = true;
    again = false;
    try { await work(); } finally { busy = false; }
    if (!element.isConnected) return;
    timer = setTimeout(() => { if (document.visibilityState === "visible") run(); }, again ? 0 : seconds * 1000);
  }
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible" && element.isConnected) run(); });
  run();
  return run;
}

function download(name, type, content) {
  const link = window.dflash.make("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The runs in view, the first one being the one that log and notes are of. They and the zoom are in the address.
const chosen = {
  get names() { return [...new Set(new URL(location.href).searchParams.getAll("run"))]; },
  choose(names) {
    const url = new URL(location.href);
    url.searchParams.delete("run");
    for (const name of names) url.searchParams.append("run", name);
    history.replaceState(history.state, "", url);
    window.dispatchEvent(new CustomEvent("dflash:runs"));
  },
  get span() {
    const [from, to] = ["from", "to"].map((key) => new URL(location.href).searchParams.get(key));
    return from !== null && to !== null && Number(from) < Number(to) ? [Number(from), Number(to)] : null;
  },
  zoom(span) {
    const url = new URL(location.href);
    for (const key of ["from", "to"]) url.searchParams.delete(key);
    if (span) { url.searchParams.set("from", +span[0].toPrecision(6)); url.searchParams.set("to", +span[1].toPrecision(6)); }
    history.replaceState(history.state, "", url);
  },
};

function figure(value, digits) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (digits !== undefined) return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(+value.toPrecision(4));
}
