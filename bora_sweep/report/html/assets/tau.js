// The curve over tau, Figure 2: all tasks together, and each.

/** The axis of tau, with its breaks as text marks over the data set `breaks`. */
function tauAxis(axis) {
  const slashes = mark("text", "breaks", { x: field("x", "x"), y: { signal: "height" }, ...fixed({ text: "//",
    align: "center", baseline: "middle", fill: "var(--task)", fontSize: 12, font: FONT }) });
  return {
    axis: axisOf("x", axis, { zindex: 1 }),
    data: { name: "breaks", values: axis.breaks.map((x) => ({ x })) },
    marks: [{ ...slashes, zindex: 2 }],
  };
}

/** Figure 2, left: all tasks together, with each value's interval. */
async function drawOverall(host, chart) {
  const { x, y, fits, parts, smooth, references, as_good, best_text, is_better_above, marks: shapes, tips, label } = chart;
  const axis = tauAxis(x);
  const rows = rowsOf({ x: fits.x, y: fits.level, low: fits.low, high: fits.high })
    .map((row, i) => ({ ...row, role: fits.role[i] }));
  const stretches = (dotted) => parts.filter((part) => part[2] === dotted)
    .flatMap(([start, stop], of) => rows.slice(start, stop).map((row) => ({ ...row, of })));
  const curve = rowsOf({ x: smooth.x, y: smooth.level, low: smooth.low, high: smooth.high });
  const rules = references.level.map((value, i) => ({ x: x.domain[1], y: value, text: references.text[i], dx: 0,
    dy: -8, align: "right" }));
  const ofRole = (role) => rows.filter((row) => row.role === role);
  const [least, most] = numbers(as_good);
  const strip = { x: { scale: "x", value: least }, x2: { scale: "x", value: most }, y: { signal: "height - 5" },
    y2: { signal: "height" }, ...fixed({ fill: "var(--best)" }) };
  const ink = { stroke: "var(--ink)", strokeWidth: 2.2 };
  const shade = (data, fillOpacity) => band(data, { fill: "var(--task)", fillOpacity });
  const view = await draw(host, {
    height: 330,
    data: [axis.data, { name: "solid", values: stretches(false) }, { name: "dotted", values: stretches(true) },
      { name: "smooth", values: curve }, { name: "points", values: ofRole("") },
      ...Object.keys(shapes).map((role) => ({ name: role, values: ofRole(role) })),
      { name: "simpler", values: rows.filter((_, i) => fits.one_standard_error[i]) }, { name: "rules", values: rules },
      { name: "as-good", values: as_good ? [{}] : [] },
      { name: "best-label", values: ofRole("best").map((row) => ({ ...row, text: best_text, dx: 0,
        dy: is_better_above ? -17 : 17, align: "center" })) }],
    axes: [axis.axis, axisOf("y", y)],
    marks: [
      mark("rect", "as-good", strip), each("solid", shade("", 0.16)), each("dotted", shade("", 0.08)),
      shade("smooth", 0.28), across("rules", { stroke: "var(--floor)", strokeWidth: 1.3, strokeDash: [5, 3] }),
      each("dotted", lines("", { ...ink, strokeWidth: 2, strokeDash: [1, 4], strokeCap: "round" })),
      curve.length ? lines("smooth", ink) : each("solid", lines("", ink)),
      ...axis.marks,
      symbols("points", { fill: "var(--ink)", size: 26 }),
      ...Object.entries(shapes).map(([role, shape]) => symbols(role, { fill: colorOf(role), shape,
        size: role === "best" ? 110 : 80, stroke: "var(--paper)", strokeWidth: 1.2 })),
      symbols("simpler", { fill: "var(--paper)", stroke: "var(--best)", shape: shapes.best, strokeWidth: 1.8, size: 80 }),
      symbols("focus", { fillOpacity: 0, stroke: "var(--ink)", strokeWidth: 1.5, size: 190 }),
      ...texts("best-label", { fill: "var(--best)", fontWeight: 600 }), ...texts("rules", { fill: "var(--floor)" }),
    ],
  });
  const pixels = () => rows.map((row) => [view.scale("x")(row.x), view.scale("y")(row.y)]);
  readable(host, view, new Selection(), {
    nearest: (px) => closest(pixels().map(([left]) => Math.abs(left - px)), 40),
    place: (i) => pixels()[i],
    marks: (i) => [rows[i]],
    order: rows.map((_, i) => i),
    lines: (i) => tips[i],
    label,
  });
}

/** Figure 2, right: each task, as it is or against itself at the best tau. */
async function drawEach(host, { x, places, parts, best, views, label, drawn: some, lines: own }) {
  const { y, values } = views[document.querySelector('input[name="scale"]:checked').value] ?? views.relative;
  const axis = tauAxis(x);
  const curves = values.map(numbers);
  const known = (d) => curves[d].some(Number.isFinite);
  const drawn = (some ?? curves.map((_, d) => d)).filter(known);
  const whole = (d) => (known(d) ? places.map((place, i) => ({ x: place, y: curves[d][i], of: d })) : []);
  const paths = (dotted) => parts.filter((part) => part[2] === dotted).flatMap(([start, stop]) => drawn.map((d) =>
    places.slice(start, stop).map((place, i) => [place, curves[d][start + i]])));
  const opacity = Math.max(0.1, Math.min(0.7, 15 / drawn.length));
  const grey = { stroke: "var(--task)", strokeWidth: 0.9 };
  const view = await draw(host, {
    height: 330,
    data: [axis.data, { name: "solid", values: [] }, { name: "dotted", values: [] },
      { name: "zero", values: y.domain[0] < 0 ? [{ y: 0 }] : [] }],
    axes: [axis.axis, axisOf("y", y)],
    marks: [
      across("zero", { stroke: "var(--task)", strokeWidth: 1 }),
      traced("dotted", { ...grey, strokeOpacity: opacity / 2, strokeDash: [2, 3] }),
      traced("solid", { ...grey, strokeOpacity: opacity }),
      ...axis.marks,
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2 }),
      symbols("focus", { fill: "var(--ink)", size: 16 }), symbols("kept", { fill: "var(--pick)", size: 14 }),
      ...texts("labels", { fill: "var(--ink)" }),
    ],
  });
  await trace(host, view, { solid: paths(false), dotted: paths(true) });
  const nearest = (px, py) => {
    const [columns, scale] = [places.map(view.scale("x")), view.scale("y")];
    if (py < -12 || py > view.height() || px < columns[0] - 15 || px > columns.at(-1) + 15) return null;
    const after = columns.findIndex((column) => column >= px);
    const i = Math.max(1, after === -1 ? columns.length - 1 : after);
    const part = columns.length < 2 ? 0 : Math.min(1, Math.max(0, (px - columns[i - 1]) / (columns[i] - columns[i - 1])));
    const height = (row) => (columns.length < 2 ? scale(row[0]) : scale(row[i - 1]) * (1 - part) + scale(row[i]) * part);
    return drawn[closest(drawn.map((d) => Math.abs(height(curves[d]) - py)), 60)] ?? null;
  };
  const column = (px) => (px === null ? best
    : closest(places.map((place) => Math.abs(view.scale("x")(place) - px)), Infinity));
  readable(host, view, tasks, {
    nearest,
    place: (d, px) => [view.scale("x")(places[column(px)]), view.scale("y")(curves[d][column(px)])],
    marks: whole,
    order: drawn,
    lines: (d) => tipOf("tasks", d, [], own),
    label,
    labels: (kept) => apart(kept.filter(known).map((d) => ({ ...whole(d).at(-1), text: isolated(SHORT[d]), dx: 2, align: "right" })),
      view.scale("y")),
  });
}

/** Labels at the same x moved apart, at least 14 pixels from one another. */
function apart(labels, scale) {
  const sorted = [...labels].sort((a, b) => scale(b.y) - scale(a.y));
  let above = Infinity;
  for (const label of sorted) {
    above = Math.min(scale(label.y) - 9, above - 14);
    label.dy = above - scale(label.y);
  }
  return sorted;
}
