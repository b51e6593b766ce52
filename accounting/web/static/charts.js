// Draws each figure.chart from the table below it, so that both always show the same.
"use strict";

(() => {
  const UNITS = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
  const STEPS = { hour: 3600, day: 86400, month: 30 * 86400 };
  const LABELS = { received: "Received", sent: "Sent", estimated: "Of it estimated", unattributed: "Unattributed" };

  // A variable of the style sheet as a colour for the canvas.
  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  // Stripes, through which what is below can be seen.
  function striped(stroke) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const brush = tile.getContext("2d");
    brush.strokeStyle = stroke;
    brush.lineWidth = 2.5;
    for (const at of [-8, 0, 8]) {
      brush.moveTo(at - 1, 9);
      brush.lineTo(at + 9, -1);
    }
    brush.stroke();
    return brush.createPattern(tile, "repeat");
  }

  function human(bytes) {
    let unit = 0;
    while (Math.abs(bytes) >= 1000 && unit < UNITS.length - 1) { bytes /= 1000; unit += 1; }
    return `${unit ? bytes.toFixed(1) : bytes} ${UNITS[unit]}`;
  }

  // The table's columns by name: {times, received, ...}.
  function read(figure) {
    const table = figure.querySelector("table");
    const heads = [...table.tHead.rows[0].cells];
    const series = heads.map((head) => head.dataset.series);
    const columns = { times: [] };
    series.forEach((name) => { if (name) columns[name] = []; });
    for (const row of table.tBodies[0].rows) {
      columns.times.push(Date.parse(row.cells[0].querySelector("time").dateTime) / 1000);
      series.forEach((name, at) => {
        if (name) columns[name].push(Number(row.cells[at].querySelector("data").value));
      });
    }
    return columns;
  }

  function axisTimes(zone, length) {
    const form = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: zone, ...options });
    const hour = form({ hour: "2-digit", minute: "2-digit" });
    const day = form({ day: "numeric", month: "short" });
    const month = form({ month: "short", year: "numeric" });
    return (_plot, splits) => splits.map((split) => {
      const time = new Date(split * 1000);
      if (length === "month") return month.format(time);
      const text = hour.format(time);
      return text === "00:00" || text === "24:00" ? day.format(time) : length === "day" ? "" : text;
    });
  }

  function draw(figure) {
    const box = figure.querySelector(".plot");
    box.replaceChildren();
    const columns = read(figure);
    const hasFigures = Object.keys(columns).some((name) => name !== "times" && columns[name].some((value) => value));
    box.hidden = !hasFigures;
    if (!hasFigures) return;
    const { zone, length } = figure.dataset;
    const step = STEPS[length];
    const text = colour("muted"), line = colour("line");
    const narrow = box.clientWidth < 500;
    const range = () => [columns.times[0], columns.times.at(-1) + step];
    const tzDate = (stamp) => uPlot.tzDate(new Date(stamp * 1000), zone);
    const stamp = new Intl.DateTimeFormat("sv-SE", {
      timeZone: zone, year: "numeric", month: "2-digit",
      ...(length !== "month" && { day: "2-digit" }),
      ...(length === "hour" && { hour: "2-digit", minute: "2-digit" }),
    });
    const times = { label: "", value: (_plot, at) => (at == null ? "" : stamp.format(new Date(at * 1000))) };
    const xAxis = {
      stroke: text, grid: { show: false }, ticks: { stroke: line, size: 4 }, size: 32,
      space: narrow ? 60 : 70, values: axisTimes(zone, length),
      ...(length !== "hour" && { incrs: [1, 2, 5, 7, 14].map((days) => days * 86400).concat([1, 2, 3, 6].map((months) => months * 30 * 86400)) }),
    };
    if (length === "month") xAxis.splits = () => columns.times.filter((_time, at) => !narrow || at % 4 === 0);
    const cursor = { y: false, points: { show: false }, drag: { x: false, y: false }, sync: { key: zone + length } };
    const base = { width: box.clientWidth, tzDate, cursor };

    const sums = columns.times.map((_time, at) => columns.received[at] + columns.sent[at]);
    const bars = uPlot.paths.bars({ size: [0.8, 60], align: 1 });
    const raw = (name) => (_plot, _value, _series, at) =>
      (at == null ? "-" : human(columns[name][at]));
    const series = [times];
    const data = [columns.times];
    const swatches = [""];
    const add = (name, values) => {
      const stroke = colour(name === "estimated" ? "stripes" : name);
      const fill = name === "estimated" ? striped(stroke) : stroke;
      swatches.push(stroke);
      series.push({
        label: LABELS[name], value: raw(name), fill: () => fill, stroke, width: 0,
        paths: bars, points: { show: false },
      });
      data.push(values);
    };
    if (columns.unattributed?.some((value) => value)) {
      add("unattributed", sums.map((sum, at) => sum + columns.unattributed[at]));
    }
    add("sent", sums);
    add("received", columns.received);
    if (columns.estimated.some((value) => value)) add("estimated", columns.estimated);
    const highest = Math.max(...data.slice(1).flat());
    const unit = Math.min(Math.floor(Math.log10(highest || 1) / 3), UNITS.length - 1);
    const yAxis = {
      stroke: text, grid: { stroke: line, width: 1 }, ticks: { show: false }, size: 64,
      values: (_plot, splits) => splits.map((split) => `${split / 1000 ** unit} ${UNITS[unit]}`),
    };
    if (highest) new uPlot({
      ...base, height: narrow ? 210 : 250, series, axes: [xAxis, yAxis],
      legend: { markers: { fill: (_plot, at) => swatches[at] } },
      scales: { x: { time: true, range }, y: { range: (_plot, _low, high) => [0, (high || 1) * 1.05] } },
    }, data, box);

    if (!columns.peak?.some((value) => value)) return;
    const peak = colour("peak");
    new uPlot({
      ...base, height: narrow ? 110 : 120,
      series: [times, {
        label: "Most sessions at once", stroke: peak, fill: peak, width: 0,
        value: (_plot, value) => (value == null ? "-" : value), paths: bars, points: { show: false },
      }],
      axes: [xAxis, { ...yAxis, values: undefined, space: 18, incrs: [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1e3, n * 1e4, n * 1e5]).sort((a, b) => a - b) }],
      scales: { x: { time: true, range }, y: { range: (_plot, _low, high) => [0, Math.max(high || 0, 1) * 1.1] } },
    }, [columns.times, columns.peak], box);
  }

  const figures = [...document.querySelectorAll("figure.chart")];
  const drawAll = () => figures.forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) { width = innerWidth; drawAll(); }
  });
})();
