// Tasks by their size: Figures 1, 3, 4, 5 and 6.

const TASKS = DATA.tables.tasks;
const NAMES = TASKS.texts.task;
const SHORT = TASKS.texts.short;
const SIZES = numbers(TASKS.values.documents);

/** Figures 3, 4 and 5: a value of each task against its training documents. */
async function drawBySize(host, chart) {
  const { tip, label, has_intervals, is_change, lines: own } = chart;
  const series = chart.series.map((one) => {
    const [value, low, high] = ["value", "low", "high"].map((part) => numbers(TASKS.values[one.columns[part]]));
    return { ...one, value, low, high, color: colorOf(one.color), line_color: colorOf(one.line_color) };
  });
  const known = (d) => series.some(({ value }) => Number.isFinite(value[d]));
  const order = (chart.drawn ?? NAMES.map((_, d) => d)).filter(known);
  const along = chart.places ? numbers(chart.places) : SIZES; // tasks of one size stand one beside another
  if (chart.places) order.sort((a, b) => along[a] - along[b]);
  const rows = (d) => series.map((one) => ({ x: along[d], y: one.value[d], low: one.low[d], high: one.high[d],
    shift: series.length > 1 ? 3 * one.shift : 0, fill: one.is_open?.[d] ? "var(--paper)" : one.color }));
  const lineOf = ({ line: { documents, value, low, high } }) => rowsOf({ x: documents, y: value, low, high });
  const beside = { ...field("x", "x"), offset: { field: "shift" } }; // two of one task stand side by side
  const [size, opacity] = DATA.are_few ? [52, 0.9] : [24, 0.5];
  const ring = (stroke, strokeWidth) => ({ fillOpacity: 0, stroke, strokeWidth, size: 130 });
  const view = await draw(host, {
    height: 320,
    data: [...series.map((one, n) => ({ name: `series${n}`, values: order.map((d) => rows(d)[n]) })),
      ...series.map((one, n) => ({ name: `line${n}`, values: lineOf(one) })),
      { name: "zero", values: is_change ? [{ y: 0 }] : [] }],
    axes: [axisOf("x", chart.x), axisOf("y", chart.y)],
    marks: [
      across("zero", { stroke: "var(--ink)", strokeWidth: 1 }),
      ...series.flatMap(({ color, line_color, marker: shape }, n) => [
        band(`line${n}`, { fill: line_color, fillOpacity: 0.09 }),
        ...(has_intervals ? [mark("rule", `series${n}`, { x: beside, y: field("y", "low"), y2: field("y", "high"),
          ...fixed({ stroke: color, strokeOpacity: 0.45, strokeWidth: 1.2 }) })] : []),
        lines(`line${n}`, { stroke: line_color, strokeWidth: 1.5 }),
        symbols(`series${n}`, { stroke: color, strokeWidth: 1.1, shape, size, fillOpacity: opacity,
          strokeOpacity: opacity }, { x: beside, fill: { field: "fill" } }),
      ]),
      symbols("kept", ring("var(--pick)", 2.4), { x: beside }), symbols("focus", ring("var(--ink)", 2), { x: beside }),
      ...texts("labels", { fill: "var(--ink)" }),
    ],
  });
  const pixel = (d, n) => [view.scale("x")(along[d]), view.scale("y")(series[n].value[d])];
  const away = (d, px, py) => Math.min(...series.map((_, n) => {
    const [a, b] = pixel(d, n);
    return Number.isFinite(a + b) ? Math.hypot(a - px, b - py) : Infinity;
  }));
  readable(host, view, tasks, {
    nearest: (px, py) => order[closest(order.map((d) => away(d, px, py)), 30)] ?? null,
    place: (d) => pixel(d, 0),
    marks: (d) => rows(d).filter((row) => Number.isFinite(row.y)),
    order,
    lines: (d) => tipOf("tasks", d, tip, own),
    label,
    labels: (kept) => kept.filter(known).map((d) => {
      const atRight = view.scale("x")(along[d]) > view.width() * 0.7;
      return { ...rows(d)[0], text: isolated(SHORT[d]), dx: atRight ? -8 : 8, dy: -8, align: atRight ? "right" : "left" };
    }),
  });
}

/** Figure 1: bars with names where there is room for them, else without. */
async function drawSizes(host, { axis, label, drawn }) {
  const few = DATA.are_few;
  const isOnePath = Boolean(drawn);
  const rows = NAMES.map((_, d) => ({ d, size: SIZES[d], text: isolated(SHORT[d]), count: TASKS.texts.documents[d] }));
  const [along, upward] = few ? ["y", "x"] : ["x", "y"];
  const places = { name: along, type: "band", domain: rows.map((row) => row.d), range: few ? "height" : "width",
    paddingInner: few ? 0.3 : 0, paddingOuter: 0.1 };
  const names = { name: "name", type: "ordinal", domain: places.domain, range: rows.map((row) => row.text) };
  // A bar of its own is no thinner than can be seen, and thousands of bars are drawn as one path.
  const thickness = few ? { scale: along, band: 1 } : { signal: "max(1, bandwidth('x'))" };
  const bar = (data, fill) => mark("rect", data, {
    [along]: field(along, "d"), [few ? "height" : "width"]: thickness,
    [upward]: { scale: upward, value: 0 }, [`${upward}2`]: field(upward, "size"), ...fixed({ fill }),
  });
  const taskAxis = few
    ? { scale: "y", orient: "left", grid: false, labelLimit: 190, labelColor: "var(--ink)",
      encode: { labels: { update: { text: { scale: "name", field: "value" } } } } }
    : { scale: "x", orient: "bottom", title: "Tasks, in order of size", labels: false, ticks: false,
      ...(isOnePath ? { values: [] } : {}) };
  const view = await draw(host, {
    height: few ? 46 + 21 * NAMES.length : 240,
    data: [{ name: "all", values: isOnePath ? [] : rows }, { name: "path", values: [] }],
    scales: [places, ...(few ? [names] : [])],
    axes: [axisOf(upward, axis, few ? { grid: true, domain: false } : {}), { scales: [], axis: taskAxis }],
    marks: [
      bar("all", "var(--bar)"), traced("path", { fill: "var(--bar)" }), bar("kept", "var(--pick)"), bar("focus", "var(--ink)"),
      ...(few ? [mark("text", "all", { y: { scale: "y", field: "d", band: 0.5 }, x: field("x", "size"),
        text: { field: "count" }, ...fixed({ dx: 5, baseline: "middle", font: FONT, fontSize: 11.5,
          fill: "var(--soft)" }) })] : []),
    ],
  });
  if (isOnePath) {
    const ends = rows.flatMap(({ size }, d) => [[d, size], [d + 1, size]]);
    await trace(host, view, { path: [[[0, 0], ...ends, [rows.length, 0]]] },
      (d) => view.width() * d / rows.length);
  }
  const middle = (d) => view.scale(along)(d) + view.scale(along).bandwidth() / 2;
  readable(host, view, tasks, {
    nearest: (px, py) => closest(rows.map((_, d) => Math.abs(middle(d) - (few ? py : px))), few ? 12 : 20),
    place: (d) => (few ? [view.scale("x")(SIZES[d]), middle(d)] : [middle(d), view.scale("y")(SIZES[d])]),
    marks: (d) => [rows[d]],
    order: rows.map((_, d) => d),
    lines: (d) => tipOf("tasks", d),
    label,
  });
}

/** Figure 6: no, partial and complete pooling in a row for each task, or for each group of tasks of similar size. */
async function drawPooling(host, { axis, rows: columns, names, tasks: of, factors, marks, label }) {
  const values = rowsOf(columns).map((row, n) => ({ ...row, n, text: names?.[n] ?? isolated(SHORT[of[n]]),
    factor: factors?.[n], left: Math.min(...Object.keys(marks).map((role) => row[role])),
    right: Math.max(...Object.keys(marks).map((role) => row[role])) }));
  const places = { name: "y", type: "band", domain: values.map(({ n }) => n), range: "height", paddingOuter: 0.1 };
  const middle = { scale: "y", field: "n", band: 0.5 };
  const range = (from, to, style) => mark("rule", "all", { y: middle, x: field("x", from), x2: field("x", to),
    ...fixed(style) });
  const row = (data, fill) => mark("rect", data, { y: field("y", "n"), height: { scale: "y", band: 1 }, x: { value: 0 },
    x2: { signal: "width" }, ...fixed({ fill, fillOpacity: 0.14 }) });
  const taskAxis = { scale: "y", orient: "left", grid: false, labelLimit: 190, labelColor: "var(--ink)",
    encode: { labels: { update: { text: { scale: "name", field: "value" } } } } };
  const view = await draw(host, {
    height: 46 + 21 * values.length,
    data: [{ name: "all", values }],
    scales: [places, { name: "name", type: "ordinal", domain: places.domain, range: values.map(({ text }) => text) }],
    axes: [axisOf("x", axis, { grid: true, domain: false }), { scales: [], axis: taskAxis }],
    marks: [
      row("kept", "var(--pick)"), row("focus", "var(--ink)"),
      range("left", "right", { stroke: "var(--grid)", strokeWidth: 3 }),
      range("low", "high", { stroke: "var(--best)", strokeWidth: 1.4, strokeOpacity: 0.55 }),
      ...Object.entries(marks).map(([role, shape]) => mark("symbol", "all", { x: field("x", role), y: middle,
        ...fixed({ shape, size: 66, fill: colorOf(role), fillOpacity: 0.9 }) })),
      ...(factors ? [mark("text", "all", { y: middle, x: { signal: "width", offset: 10 }, text: { field: "factor" },
        ...fixed({ baseline: "middle", font: FONT, fontSize: 11.5, fill: "var(--soft)" }) })] : []),
    ],
  });
  if (!of) {
    host.setAttribute("role", "img");
    host.setAttribute("aria-label", label);
    return;
  }
  const place = new Map(of.map((d, n) => [d, n]));
  const height = (d) => view.scale("y")(place.get(d)) + view.scale("y").bandwidth() / 2;
  readable(host, view, tasks, {
    nearest: (_, py) => of[closest(of.map((d) => Math.abs(height(d) - py)), 12)] ?? null,
    place: (d) => [view.scale("x")(values[place.get(d)].best), height(d)],
    marks: (d) => (place.has(d) ? [values[place.get(d)]] : []),
    order: of,
    lines: (d) => tipOf("tasks", d, factors ? [["pooling factor ", { of: "pooling" }]] : []),
    label,
  });
}
