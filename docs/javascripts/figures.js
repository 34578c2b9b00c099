// Draws the figures of a page when they come into view. Plotly is fetched from this site, and only then.
(() => {
  const here = document.currentScript.src;
  let plotly;

  const load = () => (plotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL("plotly.min.js", here);
    script.onload = () => done(window.Plotly);
    script.onerror = () => failed(new Error("plotly.min.js could not be loaded"));
    document.head.append(script);
  }));

  const dark = () => document.body.dataset.mdColorScheme === "slate";

  const layoutFor = (layout, narrow) => {
    const ink = dark() ? "#d5dae2" : "#2b3038", line = dark() ? "#4a5160" : "#dcdfe4";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const merged = { ...layout };
    for (const key of Object.keys(merged)) {
      if (/^[xy]axis\d*$/.test(key)) merged[key] = { ...axis, ...merged[key] };
    }
    return {
      margin: { l: 56, r: 16, t: 28, b: 48 }, height: 340, template: undefined, ...merged,
      xaxis: { ...axis, ...merged.xaxis }, yaxis: { ...axis, ...merged.yaxis },
      width: undefined, title: undefined, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      ...(narrow && { legend: { orientation: "h", y: -0.25 }, margin: { l: 48, r: 8, t: 28, b: 48 } }),
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
    };
  };

  const draw = async (place) => {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const Plotly = await load();
    let canvas = place.querySelector(".poise-canvas");
    if (!canvas) {
      canvas = document.createElement("div");
      canvas.className = "poise-canvas";
      canvas.setAttribute("aria-hidden", "true"); // the words of the place say what it shows
      place.append(canvas);
    }
    await Plotly.react(canvas, figure.data, layoutFor(figure.layout, place.clientWidth < 520), { displayModeBar: false, responsive: true });
    place.dataset.drawn = "yes";
  };

  const start = () => {
    const places = document.querySelectorAll(".poise-plot");
    if (!places.length) return;
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        seen.unobserve(entry.target);
        draw(entry.target).catch((error) => { entry.target.append(String(error)); });
      }
    }, { rootMargin: "300px" });
    places.forEach((place) => seen.observe(place));
    new MutationObserver(() => document.querySelectorAll(".poise-plot[data-drawn]").forEach(draw))
      .observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
    addEventListener("beforeprint", () => places.forEach((place) => place.dataset.drawn || draw(place)));
  };

  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
