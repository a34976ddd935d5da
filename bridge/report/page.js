// Shows the numbers under the pointer, from the keyboard and as tables. The drawings work without scripts.
const charts = JSON.parse(document.getElementById("numbers").textContent);
const [width, left, right] = [640, 56, 14]; // of the drawings, as in drawing.py
const short = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
const whole = (step) => step.toLocaleString("en");
const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

document.querySelectorAll("figure:not(.still)").forEach((figure, i) => {
  const chart = charts[i], svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  const first = chart.steps[0], last = chart.steps[chart.steps.length - 1];
  const along = (step) => (last > first ? (step - first) / (last - first) : 0.5);
  let shown = chart.steps.length;

  function row(colour, text) {
    const line = tip.appendChild(document.createElement("div"));
    if (colour) line.appendChild(document.createElement("i")).style.background = colour;
    line.append(text);
  }

  function show(nearest) {
    shown = nearest;
    const at = along(chart.steps[nearest]), x = left + at * (width - left - right);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    row("", `step ${whole(chart.steps[nearest])}`);
    for (const series of chart.series) {
      const value = series.values[nearest];
      if (value !== null) row(series.colour, `${series.label} ${short(value)} ${chart.unit}`);
    }
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    const place = box.left - frame.left + (x / width) * box.width;
    const beside = at < 0.5 ? place + 12 : place - tip.offsetWidth - 12;
    tip.style.top = `${box.top - frame.top + 8}px`;
    tip.style.left = `${Math.max(0, Math.min(beside, frame.width - tip.offsetWidth))}px`;
  }

  function hide() {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
    let nearest = 0;
    chart.steps.forEach((step, k) => {
      if (Math.abs(along(step) - at) < Math.abs(along(chart.steps[nearest]) - at)) nearest = k;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(Math.min(Math.max(shown + moves[event.key], 0), chart.steps.length - 1));
  });

  figure.querySelector(".data").addEventListener("toggle", ({ target }) => {
    if (target.querySelector("table")) return;
    const box = target.appendChild(document.createElement("div"));
    box.className = "table";
    box.tabIndex = 0;
    const table = box.appendChild(document.createElement("table"));
    const line = (part, kind, cells) => {
      const tr = part.insertRow();
      cells.forEach((cell, k) => (tr.appendChild(document.createElement(k ? kind : "th")).textContent = cell));
    };
    const unit = chart.unit && ` (${chart.unit})`;
    line(table.createTHead(), "th", ["step", ...chart.series.map((series) => series.label + unit)]);
    const body = table.createTBody();
    chart.steps.forEach((step, k) => {
      line(body, "td", [whole(step), ...chart.series.map(({ values }) => (values[k] === null ? "" : short(values[k])))]);
    });
  });
});
