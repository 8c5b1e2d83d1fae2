// Tasks by their size: Figures 1, 3, 4 and 5.

/** Points of tasks over their size: Figures 3, 4 and 5. */
async function drawBySize(host, series, title, { percent = false, intervals = false } = {}) {
  const known = (d) => series.some(({ values }) => Number.isFinite(values[d]));
  const order = NAMES.map((_, d) => d).filter(known);
  const x = measured("x", SIZES, "Training documents of the task", { pad: 0.04 });
  const bars = intervals && NAMES.length <= FEW;
  const y = measured("y", series.flatMap((s) => [...(bars ? [...s.low, ...s.high] : s.values),
    ...(s.trend ?? []).flatMap((row) => [row.low, row.high])]), title, { percent });
  const rows = (d) => series.map((s, n) => ({ x: SIZES[d], y: s.values[d], low: s.low?.[d], high: s.high?.[d],
    shift: series.length > 1 ? 6 * n - 3 : 0, fill: s.told && !s.told[d] ? "var(--paper)" : s.color }));
  const sets = series.map((s, n) => ({ name: `series${n}`, values: order.map((d) => rows(d)[n]) }));
  const label = (d) => {
    const right = view.scale("x")(SIZES[d]) > view.width() * 0.7;
    return { ...rows(d)[0], text: inChart(NAMES[d]), dx: right ? -8 : 8, dy: -8, align: right ? "right" : "left" };
  };
  const beside = { ...field("x", "x"), offset: { field: "shift" } }; // two of one task stand side by side
  const trends = series.map((s, n) => ({ name: `trend${n}`, values: s.trend ?? [] }));
  const [size, opacity] = NAMES.length <= FEW ? [52, 0.9] : [24, 0.5];
  const view = await draw(host, {
    height: 320,
    data: [...sets, ...trends, { name: "focus", values: [] }, { name: "kept", values: [] }, { name: "labels",
      values: [] }, { name: "zero", values: percent ? [{}] : [] }],
    scales: [x.scale, y.scale],
    axes: [x.axis, y.axis],
    marks: [
      { type: "rule", from: { data: "zero" }, encode: { update: { x: { value: 0 }, x2: { signal: "width" },
        y: { scale: "y", value: 0 }, ...fixedEncoding({ stroke: "var(--ink)", strokeWidth: 1 }) } } },
      ...series.flatMap(({ color, shape }, n) => [
        { type: "area", from: { data: `trend${n}` }, interactive: false, encode: { update: { x: field("x", "x"),
          y: field("y", "low"), y2: field("y", "high"), ...fixedEncoding({ fill: color, fillOpacity: 0.09 }) } } },
        ...(bars ? [{ type: "rule", from: { data: `series${n}` }, encode: { update: { x: beside,
          y: field("y", "low"), y2: field("y", "high"), ...fixedEncoding({ stroke: color, strokeOpacity: 0.45,
            strokeWidth: 1.2 }) } } }] : []),
        lines(`trend${n}`, { stroke: color, strokeWidth: 1.5 }),
        symbols(`series${n}`, { stroke: color, strokeWidth: 1.1, shape, size, fillOpacity: opacity,
          strokeOpacity: opacity }, { x: beside, fill: {
          field: "fill" } }),
      ]),
      symbols("kept", { fillOpacity: 0, stroke: "var(--pick)", strokeWidth: 2.4, size: 130 }, { x: beside }),
      symbols("focus", { fillOpacity: 0, stroke: "var(--ink)", strokeWidth: 2, size: 130 }, { x: beside }),
      ...texts("labels", { fill: "var(--ink)" }),
    ],
  });
  const pixel = (d, n) => [view.scale("x")(SIZES[d]), view.scale("y")(series[n].values[d])];
  const away = (d, px, py) => Math.min(...series.map((_, n) => {
    const [a, b] = pixel(d, n);
    return Number.isFinite(a + b) ? Math.hypot(a - px, b - py) : Infinity;
  }));
  readable(host, view, tasks, {
    nearest: (px, py) => closest(NAMES.map((_, d) => away(d, px, py)), 30),
    place: (d) => pixel(d, 0),
    rows: (d) => rows(d).filter((row) => Number.isFinite(row.y)),
    order,
    lines: (d) => [...taskLines(d), ...(title.startsWith("Distance")
      ? [`distance ${threeText(series[0].values[d])}`] : [])],
    label: `${title} against the task’s training documents. Arrow keys go from task to task, Enter keeps one.`,
  });
  const labels = () => view.data("labels", tasks.kept.filter(known).map(label)).runAsync();
  tasks.listeners.push(labels);
  labels();
}

/** Figure 1: bars with names where there is room for them, else without. */
async function drawSizes(host) {
  const few = NAMES.length <= FEW;
  const rows = NAMES.map((name, d) => ({ d, size: SIZES[d], text: inChart(name, 30), count: fixed(SIZES[d], 0) }));
  const index = { name: few ? "y" : "x", type: "band", domain: rows.map((r) => r.d), range: few ? "height" : "width",
    paddingInner: few ? 0.3 : 0, paddingOuter: 0.1 };
  const size = { name: few ? "x" : "y", domain: [0, Math.max(...SIZES) * 1.06], range: few ? "width" : "height",
    nice: false };
  const names = { name: "name", type: "ordinal", domain: rows.map((r) => r.d), range: rows.map((r) => r.text) };
  const bar = (fill, opacity) => ({
    type: "rect", interactive: false,
    encode: { update: few
      ? { y: field("y", "d"), height: { scale: "y", band: 1 }, x: { scale: "x", value: 0 }, x2: field("x", "size"),
        ...fixedEncoding({ fill, fillOpacity: opacity }) }
      : { x: field("x", "d"), width: { scale: "x", band: 1 }, y: { scale: "y", value: 0 }, y2: field("y", "size"),
        ...fixedEncoding({ fill, fillOpacity: opacity }) } },
  });
  const view = await draw(host, {
    height: few ? 46 + 21 * NAMES.length : 240,
    data: [{ name: "all", values: rows }, { name: "focus", values: [] }, { name: "kept", values: [] }],
    scales: [index, size, names],
    axes: few
      ? [{ scale: "x", orient: "bottom", title: "Training documents", grid: true, domain: false, tickCount: 6 },
        { scale: "y", orient: "left", grid: false, labelLimit: 190, labelColor: "var(--ink)",
          encode: { labels: { update: { text: { scale: "name", field: "value" } } } } }]
      : [{ scale: "y", orient: "left", title: "Training documents" },
        { scale: "x", orient: "bottom", title: "Tasks, in order of size", labels: false, ticks: false }],
    marks: [
      { ...bar("var(--bar)", 1), from: { data: "all" } }, { ...bar("var(--pick)", 1), from: { data: "kept" } },
      { ...bar("var(--ink)", 1), from: { data: "focus" } },
      ...(few ? [{ type: "text", from: { data: "all" }, interactive: false, encode: { update: { y: { scale: "y",
        field: "d", band: 0.5 }, x: field("x", "size"), text: { field: "count" }, ...fixedEncoding({ dx: 5,
        baseline: "middle", font: FONT, fontSize: 11.5, fill: "var(--soft)" }) } } }] : []),
    ],
  });
  const scale = () => view.scale(few ? "y" : "x");
  const middle = (d) => scale()(d) + scale().bandwidth() / 2;
  readable(host, view, tasks, {
    nearest: (px, py) => closest(rows.map((_, d) => Math.abs(middle(d) - (few ? py : px))), few ? 12 : 20),
    place: (d) => (few ? [view.scale("x")(SIZES[d]), middle(d)] : [middle(d), view.scale("y")(SIZES[d])]),
    rows: (d) => [rows[d]],
    order: rows.map((_, d) => d),
    lines: taskLines,
    label: "Training documents of each task, most first. Arrow keys go from task to task, Enter keeps one.",
  });
}
