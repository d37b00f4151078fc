// Helpers shared by the page's components. Every token reaches the page through textContent, never as HTML.
window.dflash = window.dflash || {
  make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  },
  svg(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  },
  seconds: (value) => (value == null ? "–" : value.toFixed(2) + " s"),
  milliseconds: (value) => (value == null ? "–" : (value * 1000).toFixed(value < 0.1 ? 1 : 0) + " ms"),
  number: (value, digits) => (value == null || !isFinite(value) ? "–" : value.toFixed(digits)),
  // Invisible characters made visible where single tokens are looked at.
  visible: (text) => text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅",
  // The step under inspection is shared by text, trace and timeline.
  select(index, source) {
    window.dispatchEvent(new CustomEvent("dflash:step", { detail: { index, source } }));
  },
  download(name, value) {
    const link = this.make("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  },
  // Puts a link into the clipboard, or into the address bar where pages may not write there; says which on the button.
  async handOver(href, button) {
    const label = button.dataset.label || (button.dataset.label = button.textContent);
    try {
      await navigator.clipboard.writeText(href);
      button.textContent = "Link copied";
    } catch (error) {
      window.history.replaceState(null, "", href);
      button.textContent = "Link is in the address bar";
    }
    setTimeout(() => { button.textContent = label; }, 2500);
  },
  // The button in `box` copies the text of the `pre` in it.
  copies(box) {
    const button = box.querySelector("button");
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const pre = box.querySelector("pre");
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch (error) {
        window.getSelection().selectAllChildren(pre); // without permission: one key press away
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  },
  theme(choice) {
    document.body.classList.toggle("dark", choice === "dark");
    try { localStorage.setItem("dflash-theme", choice); } catch (error) { /* private windows refuse storage */ }
  },
};
