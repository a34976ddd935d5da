// Numbers under the pointer. The drawings do without.
const charts = JSON.parse(document.getElementById("numbers").textContent);
const [width, left, right] = [640, 56, 14]; // of the drawings, as in chart.py
const short = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });

document.querySelectorAll("figure:not(.still)").forEach((figure, i) => {
  const chart = charts[i], svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const first = chart.steps[0], last = chart.steps[chart.steps.length - 1];
  const along = (step) => (last > first ? (step - first) / (last - first) : 0.5);

  function row(colour, text) {
    const line = tip.appendChild(document.createElement("div"));
    if (colour) line.appendChild(document.createElement("i")).style.background = colour;
    line.append(text);
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
    let nearest = 0;
    chart.steps.forEach((step, k) => {
      if (Math.abs(along(step) - at) < Math.abs(along(chart.steps[nearest]) - at)) nearest = k;
    });
    const x = left + along(chart.steps[nearest]) * (width - left - right);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    row("", `step ${chart.steps[nearest].toLocaleString("en")}`);
    for (const series of chart.series) {
      const value = series.values[nearest];
      if (value !== null) row(series.colour, `${series.label} ${short(value)} ${chart.unit}`);
    }
    tip.hidden = false;
    const place = (x / width) * box.width + svg.offsetLeft;
    tip.style.top = `${svg.offsetTop + 8}px`;
    tip.style.left = at < 0.5 ? `${place + 12}px` : `${place - tip.offsetWidth - 12}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
});
