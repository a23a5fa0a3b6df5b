"use strict";

/* The charts. Each is a function of what is chosen on the page, and is drawn anew when that changes;
   the numbers come from the analysis and none is computed here. */
const report = (() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "x"];
  const PARTS = ["decoding", "resize", "rounding", "model"];
  const PATTERNS = ["", "/", "x", "."];
  const LEGEND = {
    orientation: "h", y: 1.02, yanchor: "bottom", traceorder: "normal",
    itemclick: false, itemdoubleclick: false,
  };
  const BINDING = { displayModeBar: false, responsive: true, staticPlot: false };

  const chosen = {
    threshold: data.start,
    order: data.order,
    hidden: new Set(), // numbers of methods, or "ceiling"
    point: 0, // whose error vectors are drawn
    metrics: data.ablations.map(() => 0),
    printing: false,
  };

  /* Plotly reads a few HTML tags in its labels; names are never HTML. */
  const text = (name) =>
    String(name).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (name) => text(name.length > 28 ? `${name.slice(0, 27)}…` : name);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ink = (m) => style(`--ink-${m % 5}`);
  const faded = (colour, alpha) =>
    colour + Math.round(255 * alpha).toString(16).padStart(2, "0");
  const column = (rows, key) => rows.map((row) => row[key]);

  function layout(x, y, more = {}) {
    const axis = {
      color: style("--ink"), gridcolor: style("--line"), zerolinecolor: style("--line"),
      automargin: true, fixedrange: true,
    };
    return {
      paper_bgcolor: style("--paper"), plot_bgcolor: style("--paper"),
      font: { color: style("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      height: 340, margin: { l: 48, r: 12, t: 12, b: 44 }, showlegend: false, dragmode: false,
      hoverlabel: { bgcolor: style("--panel"), font: { color: style("--ink") } },
      ...more,
      xaxis: { ...axis, title: { text: x }, ...more.xaxis },
      yaxis: { ...axis, title: { text: y }, ...more.yaxis },
    };
  }

  /* Colours without names mean nothing; on the page the curves' own controls name them. */
  function named(plan, isNeeded = data.methods.length > 1) {
    if (!isNeeded) return plan;
    return { ...plan, showlegend: true, legend: LEGEND, margin: { ...plan.margin, t: 44 } };
  }

  function band(x, curve, colour) {
    const known = x.map((_, i) => i).filter((i) => curve.low[i] !== null && curve.high[i] !== null);
    return {
      x: [...known.map((i) => x[i]), ...known.slice().reverse().map((i) => x[i])],
      y: [...known.map((i) => curve.high[i]), ...known.slice().reverse().map((i) => curve.low[i])],
      fill: "toself", fillcolor: faded(colour, 0.16), line: { width: 0 }, mode: "lines",
      hoverinfo: "skip", showlegend: false,
    };
  }

  function whiskers(intervals) {
    return {
      type: "data", symmetric: false, thickness: 1.4,
      array: intervals.map((i) => (i.high === null ? 0 : i.high - i.value)),
      arrayminus: intervals.map((i) => (i.low === null ? 0 : i.value - i.low)),
    };
  }

  /* Methods side by side at the same category keep a little distance. */
  const shifted = (i, m) => i + 0.22 * (m - (data.methods.length - 1) / 2);

  function pck() {
    const x = data.thresholds;
    const traces = [];
    const line = (name, curve, colour, dash) => {
      traces.push(band(x, curve, colour));
      traces.push({
        x, y: curve.value, name: short(name), mode: "lines", line: { color: colour, dash, width: 2.4 },
        hovertemplate: "%{y:.3f}",
      });
    };
    if (data.ceiling && chosen.order === "ordered" && !chosen.hidden.has("ceiling")) {
      line("ceiling of the labels", data.ceiling, style("--ceiling"), "dot");
    }
    data.curves[chosen.order].forEach((curve, m) => {
      if (!chosen.hidden.has(String(m))) line(data.methods[m], curve, ink(m), DASHES[m % 5]);
    });
    const now = x[chosen.threshold];
    const shapes = [{
      type: "line", x0: now, x1: now, y0: 0, y1: 1, yref: "paper",
      line: { color: style("--focus"), width: 1.5 },
    }];
    return [traces, named(layout("threshold", "PCK", {
      hovermode: "x unified", height: 400, shapes,
      xaxis: { range: [0, x.at(-1)], hoverformat: ".3g" }, yaxis: { range: [0, 1.02] },
    }), chosen.printing)];
  }

  function errors() {
    const ticks = data.points.map((_, i) => i);
    const traces = data.keypoints.map((rows, m) => ({
      y: ticks.map((i) => shifted(i, m)), x: rows.map((row) => row.mean.value),
      error_x: { ...whiskers(column(rows, "mean")), color: ink(m) }, mode: "markers",
      marker: { color: ink(m), symbol: SYMBOLS[m % 5], size: 9 }, name: short(data.methods[m]),
      customdata: data.points.map(text), hovertemplate: "%{customdata}: %{x:.2f} px",
    }));
    return [traces, named(layout("mean error, px", "", {
      height: Math.max(300, 90 + 26 * data.points.length * Math.max(1, data.methods.length / 2)),
      xaxis: { rangemode: "tozero" },
      yaxis: { tickvals: ticks, ticktext: data.points.map(short), autorange: "reversed" },
    }))];
  }

  function offsets() {
    const traces = data.offsets.flatMap((points, m) => {
      const described = data.keypoints[m][chosen.point];
      return [
        {
          ...points[chosen.point], mode: "markers", name: short(data.methods[m]), showlegend: false,
          marker: { color: faded(ink(m), 0.45), symbol: SYMBOLS[m % 5], size: 6 },
          hovertemplate: "%{x:.1f}, %{y:.1f} px",
        },
        {
          x: [described.bias_x.value], y: [described.bias_y.value], mode: "markers",
          name: `${short(data.methods[m])}: mean`,
          error_x: { ...whiskers([described.bias_x]), color: style("--ink") },
          error_y: { ...whiskers([described.bias_y]), color: style("--ink") },
          marker: {
            color: ink(m), symbol: SYMBOLS[m % 5], size: 14,
            line: { color: style("--ink"), width: 2 },
          },
          hovertemplate: "mean %{x:.2f}, %{y:.2f} px",
        },
      ];
    });
    return [traces, named(layout("to the right, px", "down, px", {
      height: 420, yaxis: { autorange: "reversed", scaleanchor: "x", zeroline: true },
    }))];
  }

  function calibration(signal) {
    const traces = data.calibrations.filter((c) => c.signal === signal).map((c) => {
      const m = data.methods.indexOf(c.method);
      return {
        x: column(c.bins, "mean"), y: c.bins.map((bin) => bin.right.value), name: short(c.method),
        error_y: { ...whiskers(column(c.bins, "right")), color: ink(m) },
        mode: "lines+markers", line: { color: ink(m), dash: DASHES[m % 5] },
        marker: { color: ink(m), symbol: SYMBOLS[m % 5], size: 8 },
        customdata: column(c.bins, "median_error"),
        hovertemplate: "right %{y:.3f}, median error %{customdata:.2f} px",
      };
    });
    const unit = signal === "entropy" ? "entropy, nats (mean of the bin)" : "score (mean of the bin)";
    const plan = layout(unit, `share within ${data.threshold}`, { yaxis: { range: [0, 1.03] } });
    return [traces, named(plan, traces.length > 1)];
  }

  function budget() {
    const rows = data.budgets.map((b) => `${short(b.method)}<br>${b.only_right ? "right" : "all"} points`);
    const spent = PARTS.filter((part) =>
      data.budgets.some((b) => b.parts.some((p) => p.name === part)));
    const traces = spent.map((part, i) => ({
      type: "bar", orientation: "h", name: part, y: rows,
      x: data.budgets.map((b) => b.parts.find((p) => p.name === part)?.share ?? 0),
      marker: { color: ink(i), pattern: { shape: PATTERNS[i], fillmode: "overlay", fgcolor: style("--paper"), solidity: 0.25 } },
      hovertemplate: `${part}: %{x:.1%}`,
    }));
    return [traces, layout("share of squared error", "", {
      barmode: "stack", showlegend: true, height: 150 + 62 * rows.length,
      legend: LEGEND,
      margin: { l: 48, r: 12, t: 40, b: 44 },
      xaxis: { tickformat: ".0%" }, yaxis: { autorange: "reversed" },
    })];
  }

  function training(m) {
    const lines = data.training[m];
    const trace = (key, name, dash, symbol) => ({
      x: column(lines, "step"), y: column(lines, key), name, mode: "lines+markers",
      line: { color: ink(m), dash }, marker: { symbol, size: 6 }, hovertemplate: "%{y:.4g}",
    });
    return [
      [trace("train_loss", "training", "solid", "circle"), trace("val_loss", "validation", "dash", "square-open")],
      layout("step", "loss", {
        hovermode: "x unified", showlegend: true, margin: { l: 56, r: 12, t: 36, b: 44 },
        legend: LEGEND,
        yaxis: { type: "log", exponentformat: "e" },
      }),
    ];
  }

  function ablation(number) {
    const found = data.ablations[number];
    const metric = chosen.metrics[number];
    const value = found.rows.map((row) => row.means[metric]);
    const names = found.rows.map((row) => row.settings.join(", ") || "(no settings)");
    const trace = {
      x: value, y: names.map((_, i) => i), mode: "markers", name: "",
      error_x: { type: "data", array: found.rows.map((row) => row.deviations[metric] ?? 0), color: ink(0) },
      marker: { color: ink(0), size: 10 }, customdata: names.map(text),
      hovertemplate: "%{customdata}: %{x:.4g}<extra></extra>",
    };
    return [[trace], layout(text(found.metrics[metric] ?? ""), "", {
      height: 130 + 28 * names.length,
      yaxis: { tickvals: names.map((_, i) => i), ticktext: names.map(short), autorange: "reversed" },
    })];
  }

  const charts = { pck, errors, offsets, budget };
  for (const signal of ["score", "entropy"]) charts[`calibration-${signal}`] = () => calibration(signal);
  data.training.forEach((_, m) => { charts[`training-${m}`] = () => training(m); });
  data.ablations.forEach((_, i) => { charts[`ablation-${i}`] = () => ablation(i); });

  function draw(name) {
    const place = document.getElementById(`chart-${name}`);
    if (!place) return;
    const [traces, plan] = charts[name]();
    if (chosen.printing) plan.width = Math.min(640, place.clientWidth || 640);
    Plotly.react(place, traces, plan, BINDING);
  }

  const drawAll = () => Object.keys(charts).forEach(draw);
  return { data, chosen, draw, drawAll };
})();
