"use strict";
// Draws the charts, whose colours are names of the stylesheet's, and draws them again in the other colour scheme.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const isTouched = matchMedia("(pointer: coarse)").matches;
  const scheme = matchMedia("(prefers-color-scheme: dark)");

  function coloured(value, isColour, style) {
    if (typeof value === "string") return isColour && value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return isColour ? value.map((each) => coloured(each, true, style)) : value.map((each) =>
      each !== null && typeof each === "object" ? coloured(each, false, style) : each);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) =>
      [name, coloured(each, /color(scale)?$/i.test(name), style)]));
  }

  function laidOut(chart, style) {
    const [ink, soft, grid, paper] = ["--ink", "--soft", "--grid", "--paper"].map((name) => style.getPropertyValue(name).trim());
    const isNarrow = innerWidth <= 640;
    const layout = coloured(chart.layout, false, style);
    for (const name of ["xaxis", "yaxis"]) {
      const given = layout[name];
      if (!given) continue;
      layout[name] = {
        automargin: true, gridcolor: grid, linecolor: grid, zeroline: false, ticks: "outside", ticklen: 4, tickcolor: grid,
        nticks: isNarrow || chart.small ? 5 : 9, ...given,
        title: { standoff: 10, font: { size: 12.5, color: soft }, ...given.title },
        tickfont: { size: 12, color: soft },
      };
    }
    return {
      uirevision: "kept", autosize: true, height: chart.height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
      hoverlabel: { bgcolor: paper, bordercolor: soft, font: { color: ink, size: 12.5 }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: soft }, itemsizing: "constant" },
      hovermode: "closest", dragmode: isTouched ? false : "zoom", margin: { l: 8, r: 12, t: 30, b: 8 },
      ...layout,
    };
  }

  function draw(chart) {
    const style = getComputedStyle(document.documentElement);
    const data = coloured(chart.data, false, style);
    for (const trace of data) {
      if (trace.type !== "parcoords") continue;
      const soft = style.getPropertyValue("--soft").trim();
      const faint = style.getPropertyValue("--grid").trim();
      Object.assign(trace, {
        labelfont: { size: 12.5, color: style.getPropertyValue("--ink").trim() }, tickfont: { size: 11.5, color: soft },
        rangefont: { size: 1, color: "rgba(0,0,0,0)" }, unselected: { line: { color: faint, opacity: 0.25 } },
      });
    }
    return Plotly.react(`chart-${chart.key}`, data, laidOut(chart, style), {
      responsive: true, displaylogo: false, displayModeBar: isTouched ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], toImageButtonOptions: { filename: chart.key, scale: 2 },
    });
  }

  async function drawAll() {
    for (const chart of charts) {
      await draw(chart);
      await new Promise((go) => setTimeout(go)); // the page answers in between
    }
    document.documentElement.dataset.drawn = scheme.matches ? "dark" : "light";
  }

  for (const button of document.querySelectorAll("button[data-chart]")) {
    button.addEventListener("click", () => {
      Plotly.relayout(button.dataset.chart, { "yaxis.autorange": true });
      button.remove();
    });
  }
  scheme.addEventListener("change", drawAll);
  drawAll();
})();
