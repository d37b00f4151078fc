// Dark or light: the system's choice until someone presses the button; then the browser remembers.
const button = element.querySelector(".df-theme");
const asked = new URL(window.location.href).searchParams.get("__theme");
let kept = null;
try { kept = localStorage.getItem("dflash-theme"); } catch (error) { /* private windows refuse storage */ }
const label = () => {
  const dark = document.body.classList.contains("dark");
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
};
if (kept && !asked) document.body.classList.toggle("dark", kept === "dark");
button.addEventListener("click", () => {
  window.dflash.theme(document.body.classList.contains("dark") ? "light" : "dark");
  label();
});
new MutationObserver(label).observe(document.body, { attributes: true, attributeFilter: ["class"] });
label();
