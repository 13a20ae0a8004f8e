// The charts of the overview: asks for all points at once and draws them with uPlot.
// Owns colours and axes; which lines there are is the server's choice.
"use strict";
(() => {
  const section = document.getElementById("charts");
  if (!section) return;
  const HEIGHT = 200; // CSS pixels of a plot without its legend
  const STATUS_COLORS = {
    succeeded: "--good", failed: "--bad", skipped: "--series-4", cancelled: "--mute",
    expired: "--series-5", requested: "--series-1", ended: "--good",
    p50: "--series-1", p95: "--series-2", p99: "--series-3",
  };
  const FILLED = new Set(["succeeded", "failed", "p50", "requested"]);
  const charts = new Map();
  let lastData = null;

  const color = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function formatter(unit) {
    const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3);
    const plain = (value) =>
      value.toLocaleString("en", { maximumFractionDigits: digits(Math.abs(value)) });
    if (unit === "ms") {
      return (value) => (value === 0 ? "0" : value >= 1000 ? `${plain(value / 1000)} s` : `${plain(value)} ms`);
    }
    if (unit === "%") return (value) => `${plain(value)} %`;
    return plain;
  }

  const two = (value) => String(value).padStart(2, "0");
  function clock(seconds, withSeconds) {
    const at = new Date(seconds * 1000);
    const text = `${two(at.getHours())}:${two(at.getMinutes())}`;
    return withSeconds ? `${text}:${two(at.getSeconds())}` : text;
  }

  // A value between two gaps has no neighbour that a line could lead to: it is drawn as a dot.
  function lonePoints(plot, index) {
    const values = plot.data[index];
    const lone = [];
    for (let i = 0; i < values.length; i++) {
      if (values[i] != null && values[i - 1] == null && values[i + 1] == null) lone.push(i);
    }
    return lone.length ? lone : null;
  }

  function lineOf(name, index, format) {
    const variable = STATUS_COLORS[name] || `--series-${(index % 5) + 1}`;
    const stroke = color(variable);
    return {
      label: name,
      stroke,
      width: 1.75,
      fill: FILLED.has(name) ? `color-mix(in srgb, ${stroke} 12%, transparent)` : undefined,
      points: { show: false, filter: lonePoints, size: 5, stroke, fill: stroke },
      spanGaps: false,
      value: (_plot, value) => (value == null ? "–" : format(value)),
    };
  }

  function optionsFor(box, chart) {
    const unit = box.dataset.unit;
    const format = formatter(unit);
    const axis = {
      stroke: color("--text-mute"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: color("--line-soft"), width: 1 },
      ticks: { stroke: color("--line-soft"), width: 1, size: 4 },
    };
    return {
      width: Math.max(box.clientWidth, 200),
      height: HEIGHT,
      cursor: { sync: { key: "tidemill" }, y: false, points: { size: 6 } },
      legend: { live: true, markers: { width: 0, fill: (plot, i) => plot.series[i].stroke() } },
      scales: { x: { time: true }, y: { range: (_plot, _min, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [
        { ...axis, space: 70, values: (_plot, splits) => splits.map((at) => clock(at, false)) },
        {
          ...axis, size: 62, label: unit === "ms" ? "time" : unit, labelSize: 16,
          labelFont: "11px system-ui, sans-serif",
          space: 36, values: (_plot, splits) => splits.map(format),
        },
      ],
      series: [
        { label: "time", value: (_plot, at) => (at == null ? "–" : clock(at, true)) },
        ...chart.series.map((line, index) => lineOf(line.label, index, format)),
      ],
    };
  }

  function showLast(plot) {
    // Without a cursor the legend tells the latest numbers instead of dashes. uPlot commits its own
    // state in a microtask, so ours comes after it.
    setTimeout(() => {
      if (plot.cursor.left < 0 && plot.data[0].length) {
        plot.setLegend({ idx: plot.data[0].length - 1 });
      }
    }, 0);
  }

  function draw(box, chart) {
    const columns = [chart.x, ...chart.series.map((line) => line.values)];
    const shape = chart.series.map((line) => line.label).join("\n");
    const known = charts.get(box);
    if (known && known.shape === shape) {
      known.plot.setData(columns);
      showLast(known.plot);
      return;
    }
    if (known) known.plot.destroy();
    box.replaceChildren();
    charts.delete(box);
    if (!chart.series.length) {
      const word = document.createElement("p");
      word.className = "empty-line";
      word.textContent = "Nothing in this window.";
      box.append(word);
      return;
    }
    const plot = new uPlot(optionsFor(box, chart), columns, box);
    charts.set(box, { plot, shape });
    plot.over.addEventListener("mouseleave", () => showLast(plot));
    showLast(plot);
  }

  function drawAll() {
    if (!lastData) return;
    for (const box of section.querySelectorAll("[data-chart]")) {
      draw(box, lastData[box.dataset.chart]);
    }
    section.dataset.drawn = "true";
  }

  let isAsking = false;
  async function refresh() {
    if (isAsking) return;
    isAsking = true;
    try {
      const answer = await fetch(`/fragments/charts?minutes=${section.dataset.minutes}`);
      if (answer.ok) {
        lastData = await answer.json();
        drawAll();
      }
    } catch {
      document.dispatchEvent(new CustomEvent("tidemill:away"));
    } finally {
      isAsking = false;
    }
  }

  document.addEventListener("tidemill:theme", () => {
    for (const { plot } of charts.values()) plot.destroy();
    charts.clear();
    drawAll();
  });
  new ResizeObserver(() => {
    for (const [box, { plot }] of charts) {
      plot.setSize({ width: Math.max(box.clientWidth, 200), height: HEIGHT });
    }
  }).observe(section);
  document.body.addEventListener("tick", refresh);
  refresh();
})();
