"use strict";
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");
const plots = [];

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

function announce(text) {
  document.getElementById("status").textContent = text;
}

const toggle = document.getElementById("theme");
function showTheme() {
  document.getElementById("other-theme").textContent = isDark() ? "Light theme" : "Dark theme";
  plots.forEach(draw);
}
toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("poise-theme", root.dataset.theme); } catch { /* a frame has no storage */ }
  showTheme();
});
systemDark.addEventListener("change", showTheme);
printing.addEventListener("change", () => plots.forEach(draw));

for (const button of document.querySelectorAll(".copy")) {
  const code = button.parentElement.querySelector("code");
  button.hidden = false;
  button.setAttribute("aria-label", `Copy ${code.parentElement.getAttribute("aria-label")}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      announce("Copied");
    } catch {
      getSelection().selectAllChildren(code); // where the clipboard is blocked, the user presses the copy key
      announce("Selected, ready to copy");
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

function plotTemplate() {
  const dark = isDark() && !printing.matches;
  const text = dark ? "#c9d0d9" : "#3f464e";
  const grid = dark ? "#2b323b" : "#e9e7e2";
  const line = dark ? "#4a5360" : "#c4c1ba";
  const axis = { gridcolor: grid, linecolor: line, zerolinecolor: grid, zerolinewidth: 1, automargin: true, showline: true,
    title: { standoff: 10, font: { size: 12.5 } }, nticks: innerWidth < 640 ? 5 : 9 };
  return { layout: {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: text },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: palette,
    colorscale: { sequential: "Viridis", diverging: "RdBu" },
    xaxis: { ...axis, showgrid: false }, yaxis: { ...axis, showline: false },
    hoverlabel: { bgcolor: dark ? "#232a33" : "#ffffff", bordercolor: line, font: { color: text }, namelength: -1 },
    annotationdefaults: { font: { color: text } },
    legend: { orientation: "h", y: -0.25 },
    margin: { l: 56, r: 12, t: 16, b: 48 },
    height: innerWidth < 640 ? 320 : 380,
    // One finger scrolls the page; it does not drag the chart.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  } };
}

function draw(plot) {
  const layout = { ...plot.layout, template: plotTemplate(), autosize: true };
  if (plot.ownLegend) layout.showlegend = false;
  return Plotly.react(plot.box, plot.data, layout, { responsive: true, displayModeBar: false });
}

// Plotly's legend cannot be reached from the keyboard: curves in a plane get buttons instead.
function addLegend(plot, holder) {
  const traces = plot.box._fullData;
  const named = traces.filter((trace) => trace.showlegend);
  plot.ownLegend = traces.every((trace) => trace.xaxis);
  if (!plot.ownLegend || plot.box._fullLayout.showlegend === false || named.length < 2) return;
  for (const trace of named) {
    const mates = plot.data.filter((other, i) => i === trace.index || (trace.legendgroup && traces[i].legendgroup === trace.legendgroup));
    const button = document.createElement("button");
    const ink = document.createElement("i");
    const lines = (trace.mode || "").includes("lines");
    ink.className = lines ? { dash: "dash", dot: "dot" }[trace.line.dash] || "" : "fill";
    const color = lines ? trace.line.color : trace.marker && trace.marker.color;
    ink.style.setProperty("--ink", typeof color === "string" ? color : "currentColor");
    button.type = "button";
    button.append(ink, trace.name);
    button.setAttribute("aria-pressed", String(trace.visible === true));
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const mate of mates) mate.visible = shown;
      draw(plot);
    });
    holder.append(button);
  }
}

async function drawAll() {
  const packed = document.getElementById("plotly");
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  packed.remove();
  for (const figure of document.querySelectorAll("figure")) {
    const plot = { box: figure.querySelector(".plot"), ...JSON.parse(figure.querySelector("script").textContent) };
    plot.box.replaceChildren();
    await draw(plot);
    addLegend(plot, figure.querySelector(".curves"));
    if (plot.ownLegend) await draw(plot);
    plots.push(plot);
  }
  root.dataset.drawn = "yes";
}

showTheme();
drawAll().catch((error) => {
  // The description and the data stand below every figure; open them.
  for (const details of document.querySelectorAll("figure details")) details.open = true;
  console.error(error);
});
