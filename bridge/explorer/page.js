// What the page does in the browser: it updates the address and copies or saves values. Nothing leaves the browser.
window.bridge = {
  // Replace the state in the address, keeping gradio's own parameters (__theme and the like).
  putQuery(query) {
    const kept = [...new URLSearchParams(location.search)].filter(([key]) => key.startsWith("__"));
    const parts = [new URLSearchParams(kept).toString(), query].filter(Boolean);
    history.replaceState(null, "", parts.length ? "?" + parts.join("&") : location.pathname);
  },

  async copy(text) {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  },

  save(text, name, kind) {
    const type = kind === "csv" ? "text/csv" : "application/json";
    const address = URL.createObjectURL(new Blob([text], { type }));
    Object.assign(document.createElement("a"), { href: address, download: `${name}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  },
};

// Plots take the keyboard focus and have a name; a table of their numbers unfolds below the table of the tab.
const name = (plot) => plot.layout?.title?.text?.replaceAll("<br>", " ");
new MutationObserver(() => {
  for (const plot of document.querySelectorAll(".js-plotly-plot:not([role])")) {
    if (!name(plot)) continue;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `Chart: ${name(plot)}. Its numbers stand in the tables below.`);
    plot.tabIndex = 0;
  }
}).observe(document.documentElement, { childList: true, subtree: true });

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".export button");
  if (!button) return;
  const box = button.closest(".export");
  const kind = button.dataset.copy || button.dataset.save;
  const text = box.querySelector(`[data-text="${kind}"]`).value;
  if (button.dataset.save) window.bridge.save(text, button.dataset.name, kind);
  else await window.bridge.copy(text);
  box.querySelector("output").textContent = button.dataset.save ? "Saved." : "Copied.";
});
