// The charts of the page: the curve over tau, learning curves, and Figures 1, 3, 4 and 5.

const TASKS = DATA.tasks;
const NAMES = TASKS.name;
const TAUS = numbers(TASKS.taus);
const SIZES = numbers(TASKS.documents.train);
const OVER_TAU = TASKS.over_tau.map(numbers);
const tasks = new Choice();
const trials = new Choice();
const ROLES = { independent: ["var(--independent)", "square"], shared: ["var(--shared)", "triangle-up"],
  best: ["var(--best)", "diamond"] };
const ENDS = { independent: "one model per task (τ = 0)", shared: "one model for all (τ = ∞)" };

/** Stretches of a row over tau: between the ends, and across the breaks to them. */
function stretches(taus) {
  const first = taus[0] === 0 ? 1 : 0;
  const last = taus[taus.length - 1] === Infinity ? taus.length - 1 : taus.length;
  if (first >= last) return { solid: [], dotted: [taus.map((_, i) => i)] };
  const dotted = [...(first ? [[0, 1]] : []), ...(last < taus.length ? [[last - 1, last]] : [])];
  return { solid: [taus.slice(first, last).map((_, i) => first + i)], dotted };
}

const roleOf = (tau, isBest) => (isBest ? "best" : tau === 0 ? "independent" : tau === Infinity ? "shared" : null);

/** Figure 2, left: all tasks together, with each value's interval. */
async function drawOverall(host) {
  const table = DATA.taus;
  const fits = table.tau.map((_, i) => i).filter((i) => table.method[i] === "map");
  const taus = fits.map((i) => number(table.tau[i]));
  const axis = tauAxis(taus);
  const rows = fits.map((i, n) => ({
    x: axis.place(taus[n]), y: number(table.test_perplexity[i]), low: number(table.test_perplexity_low[i]),
    high: number(table.test_perplexity_high[i]), fit: i,
  }));
  const [least, most] = [Math.min(...rows.map((r) => r.y)), Math.max(...rows.map((r) => r.y))];
  const room = 0.8 * (most - least);
  const rules = Object.entries({ "zero-shot": number(DATA.zero_shot), floor: number(DATA.floor) })
    .filter(([, value]) => value >= least - room && value <= most + room)
    .map(([name, y]) => ({ x: axis.scales[0].domain[1], y, text: `${name} ${perplexityText(y)}`, name, dx: 0, dy: -8,
      align: "right" }));
  const smooth = DATA.smooth;
  const fitted = smooth ? numbers(smooth.tau).map((tau, i) => ({ x: Math.log10(tau), y: number(smooth.perplexity[i]),
    low: number(smooth.low[i]), high: number(smooth.high[i]) })) : [];
  const y = measured("y", [...rows.flatMap((r) => [r.low, r.high]), ...rules.map((r) => r.y)], "Test perplexity");
  const { solid, dotted } = stretches(taus);
  const cut = (parts) => parts.flatMap((part, of) => part.map((i) => ({ ...rows[i], of })));
  const marked = rows.map((row, n) => ({ ...row, role: roleOf(taus[n], table.best[row.fit]) }));
  const best = marked.find((row) => row.role === "best");
  const simpler = marked.filter((row) => table.one_standard_error[row.fit] && row !== best);
  const band = (opacity) => ({
    type: "area", interactive: false,
    encode: { update: { x: field("x", "x"), y: field("y", "low"), y2: field("y", "high"),
      ...fixedEncoding({ fill: "var(--task)", fillOpacity: opacity }) } },
  });
  const view = await draw(host, {
    height: 330,
    data: [axis.data, { name: "solid", values: cut(solid) }, { name: "dotted", values: cut(dotted) },
      { name: "smooth", values: fitted }, { name: "points", values: marked.filter((row) => row.role === null) },
      ...Object.keys(ROLES).map((role) => ({ name: role, values: marked.filter((row) => row.role === role) })),
      { name: "simpler", values: simpler }, { name: "rules", values: rules }, { name: "focus", values: [] }, { name: "kept", values: [] },
      { name: "label", values: [{ ...best, text: `best: τ = ${tauText(number(table.tau[best.fit]))}`, dx: 0, dy: 17,
        align: "center" }] }],
    scales: [...axis.scales, y.scale],
    axes: [axis.axis, y.axis],
    marks: [
      ...strip(DATA.as_good), each("solid", band(0.16)), each("dotted", band(0.08)),
      { ...band(0.28), from: { data: "smooth" } },
      { type: "rule", from: { data: "rules" }, encode: { update: { x: { value: 0 }, x2: { signal: "width" },
        y: field("y", "y"), ...fixedEncoding({ stroke: "var(--floor)", strokeWidth: 1.3, strokeDash: [5, 3] }) } } },
      each("dotted", lines("", { stroke: "var(--ink)", strokeWidth: 2, strokeDash: [1, 4], strokeCap: "round" })),
      fitted.length ? lines("smooth", { stroke: "var(--ink)", strokeWidth: 2.2 })
        : each("solid", lines("", { stroke: "var(--ink)", strokeWidth: 2.2 })),
      ...axis.marks,
      symbols("points", { fill: "var(--ink)", size: 26 }),
      ...Object.entries(ROLES).map(([role, [fill, shape]]) => symbols(role, { fill, shape, size: role === "best" ? 110
        : 80, stroke: "var(--paper)", strokeWidth: 1.2 })),
      symbols("simpler", { fill: "var(--paper)", stroke: "var(--best)", shape: "diamond", strokeWidth: 1.8, size: 80 }),
      symbols("focus", { fillOpacity: 0, stroke: "var(--ink)", strokeWidth: 1.5, size: 190 }),
      ...texts("label", { fill: "var(--best)", fontWeight: 600 }), ...texts("rules", { fill: "var(--floor)" }),
    ],
  });
  const pixels = () => rows.map((r) => [view.scale("x")(r.x), view.scale("y")(r.y)]);
  readable(host, view, new Choice(), {
    nearest: (px) => closest(pixels().map(([x]) => Math.abs(x - px)), 40),
    place: (n) => pixels()[n],
    rows: (n) => [rows[n]],
    order: rows.map((_, n) => n),
    lines: (n) => tauLines(rows[n].fit),
    label: "Test perplexity of all tasks together over the precision τ. Arrow keys go from value to value.",
  });
}

/** A strip along the axis: values of tau that validation does not tell from the best. */
function strip(asGood) {
  if (!asGood) return [];
  const [low, high] = numbers(asGood).map(Math.log10);
  return [{ type: "rect", interactive: false, encode: { update: { x: { scale: "x", value: low }, x2: { scale: "x",
    value: high }, y: { signal: "height - 5" }, y2: { signal: "height" }, ...fixedEncoding({ fill: "var(--best)" }) } } }];
}

function tauLines(i) {
  const table = DATA.taus;
  const of = (name) => number(table[name][i]);
  const level = levelText(...["", "_low", "_high"].map((end) => of(`test_perplexity${end}`)));
  return [`τ = ${tauText(of("tau"))}`, `test perplexity ${level}`,
    `validation ${perplexityText(of("validation_perplexity"))}`,
    ...(table.best[i] ? ["best on validation"]
      : [`${intervalText(...["", "_low", "_high"].map((end) => of(`relative_difference_to_best${end}`)))} against the best`]),
    ...(table.one_standard_error[i] && !table.best[i] ? ["the one-standard-error choice"] : [])];
}

/** Figure 2, right: each task, as it is or against itself at the best tau. */
async function drawEach(host, relative) {
  const axis = tauAxis(TAUS);
  const best = numbers(TASKS.perplexity.best);
  const values = OVER_TAU.map((row, d) => (relative ? row.map((value) => value / best[d] - 1) : row));
  const all = values.flat();
  const y = measured("y", all, relative ? "Test perplexity against the best τ" : "Test perplexity",
    { percent: relative });
  const { solid, dotted } = stretches(TAUS);
  const row = (d) => (i) => ({ x: axis.place(TAUS[i]), y: values[d][i], of: d, ok: Number.isFinite(values[d][i]) });
  // One line of all tasks, lifted between them: a thousand lines of their own would take a second to draw.
  const lifted = (parts) => values.flatMap((_, d) => parts.flatMap((part) => [...part.map(row(d)), { x: 0, y: 1,
    ok: false }]));
  const whole = (d) => TAUS.map((_, i) => row(d)(i));
  const label = (d) => {
    const last = whole(d)[TAUS.length - 1];
    return { ...last, text: inChart(NAMES[d]), dx: 2, dy: -9, align: "right" };
  };
  const opacity = Math.max(0.1, Math.min(0.7, 15 / NAMES.length));
  const view = await draw(host, {
    height: 330,
    data: [axis.data, { name: "solid", values: lifted(solid) }, { name: "dotted", values: lifted(dotted) },
      { name: "focus", values: [] }, { name: "kept", values: [] }, { name: "labels", values: [] },
      { name: "zero", values: relative ? [{}] : [] }],
    scales: [...axis.scales, y.scale],
    axes: [axis.axis, y.axis],
    marks: [
      { type: "rule", from: { data: "zero" }, encode: { update: { x: { value: 0 }, x2: { signal: "width" },
        y: { scale: "y", value: 0 }, ...fixedEncoding({ stroke: "var(--task)", strokeWidth: 1 }) } } },
      lines("dotted", { stroke: "var(--task)", strokeWidth: 0.9, strokeOpacity: opacity / 2, strokeDash: [2, 3] },
        { defined: { field: "ok" } }),
      lines("solid", { stroke: "var(--task)", strokeWidth: 0.9, strokeOpacity: opacity }, { defined: { field: "ok" } }),
      ...axis.marks,
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 }, { defined: { field: "ok" } })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2 }, { defined: { field: "ok" } }),
      symbols("focus", { fill: "var(--ink)", size: 16 }), symbols("kept", { fill: "var(--pick)", size: 14 }),
      ...texts("labels", { fill: "var(--ink)" }),
    ],
  });
  const columns = TAUS.map((tau) => axis.place(tau));
  const nearest = (px, py) => {
    const x = columns.map(view.scale("x"));
    if (py < -12 || py > view.height() || px < x[0] - 15 || px > x[x.length - 1] + 15) return null;
    const i = Math.max(1, x.findIndex((place) => place >= px) === -1 ? x.length - 1 : x.findIndex((p) => p >= px));
    const part = x.length < 2 ? 0 : Math.min(1, Math.max(0, (px - x[i - 1]) / (x[i] - x[i - 1])));
    const scale = view.scale("y");
    const between = (v) => (x.length < 2 ? scale(v[0]) : scale(v[i - 1]) * (1 - part) + scale(v[i]) * part);
    return closest(values.map((v) => Math.abs(between(v) - py)), 60);
  };
  const at_ = (px) => (px === null ? TAUS.indexOf(number(DATA.best_tau))
    : closest(columns.map((c) => Math.abs(view.scale("x")(c) - px)), Infinity));
  readable(host, view, tasks, {
    nearest,
    place: (d, px) => [view.scale("x")(columns[at_(px)]), view.scale("y")(values[d][at_(px)])],
    rows: whole,
    order: NAMES.map((_, d) => d),
    lines: taskLines,
    label: `Test perplexity of each of ${counted(NAMES.length, "task")} over τ. Arrow keys go from task to task, `
      + "Enter keeps one.",
  });
  const labels = () => view.data("labels", apart(tasks.kept.map(label), view.scale("y"))).runAsync();
  tasks.listeners = tasks.listeners.filter((listener) => listener !== host.labels);
  tasks.listeners.push(host.labels = labels);
  labels();
}

/** Labels at the same x moved apart, at least 14 pixels from one another. */
function apart(labels, scale) {
  const sorted = [...labels].sort((a, b) => scale(b.y) - scale(a.y));
  let above = Infinity;
  for (const label of sorted) {
    const wanted = scale(label.y) - 9;
    const place = Math.min(wanted, above - 14);
    label.dy = place - scale(label.y);
    above = place;
  }
  return sorted;
}

/** What is said of a task. */
function taskLines(d) {
  const of = (name) => number(TASKS.perplexity[name]?.[d]);
  const gain = Object.keys(ENDS).map((end) => {
    const found = DATA.gains[end];
    return found ? `${intervalText(...["improvement", "low", "high"].map((name) => number(found[name][d])))} gained on ${
      ENDS[end]}: ${found.verdict[d]}` : null;
  });
  return [shown(NAMES[d]), `${counted(SIZES[d], "training document")}`,
    `test perplexity ${levelText(of("best"), number(TASKS.best_low[d]), number(TASKS.best_high[d]))} at τ = ${
      tauText(number(DATA.best_tau))}`,
    ...gain.filter((line) => line !== null)];
}

/** Points of tasks over their size: Figures 3, 4 and 5. */
async function drawBySize(host, series, title, { percent = false, intervals = false } = {}) {
  const known = (d) => series.some(({ values }) => Number.isFinite(values[d]));
  const order = NAMES.map((_, d) => d).filter(known);
  const x = measured("x", SIZES, "Training documents of the task", { pad: 0.04 });
  const bars = intervals && NAMES.length <= FEW;
  const y = measured("y", series.flatMap((s) => [...(bars ? [...s.low, ...s.high] : s.values),
    ...(s.trend ?? []).flatMap((row) => [row.low, row.high])]), title, { percent });
  const rows = (d) => series.map((s) => ({ x: SIZES[d], y: s.values[d], low: s.low?.[d], high: s.high?.[d],
    fill: s.told && !s.told[d] ? "var(--paper)" : s.color }));
  const sets = series.map((s, n) => ({ name: `series${n}`, values: order.map((d) => rows(d)[n]) }));
  const label = (d) => {
    const right = view.scale("x")(SIZES[d]) > view.width() * 0.7;
    return { ...rows(d)[0], text: inChart(NAMES[d]), dx: right ? -8 : 8, dy: -8, align: right ? "right" : "left" };
  };
  const beside = (n) => ({ ...field("x", "x"), offset: series.length > 1 ? 6 * n - 3 : 0 });
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
        ...(bars ? [{ type: "rule", from: { data: `series${n}` }, encode: { update: { x: beside(n),
          y: field("y", "low"), y2: field("y", "high"), ...fixedEncoding({ stroke: color, strokeOpacity: 0.45,
            strokeWidth: 1.2 }) } } }] : []),
        lines(`trend${n}`, { stroke: color, strokeWidth: 1.5 }),
        symbols(`series${n}`, { stroke: color, strokeWidth: 1.1, shape, size, opacity }, { x: beside(n), fill: {
          field: "fill" } }),
      ]),
      symbols("kept", { fillOpacity: 0, stroke: "var(--pick)", strokeWidth: 2.4, size: 130 }),
      symbols("focus", { fillOpacity: 0, stroke: "var(--ink)", strokeWidth: 2, size: 130 }),
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

/** Validation perplexity of every trial by epoch; of the ends, the best and those kept also that of training. */
async function drawLearning(host) {
  const table = DATA.trials;
  const curves = DATA.curves.map((curve) => ({ ...curve, perplexity: numbers(curve.perplexity) }));
  const of = (trial, split) => curves.find((curve) => curve.trial === trial && curve.split === split);
  const ids = table.trial_id.map((_, n) => n).filter((n) => of(n, "validation"));
  if (!ids.length) {
    host.replaceChildren(element("p", { class: "empty" }, "No trial has a learning curve yet."));
    return;
  }
  const rows = (n, split) => (of(n, split)?.epoch ?? []).map((epoch, i) => ({ x: epoch, y: of(n, split).perplexity[i],
    of: n, ok: Number.isFinite(of(n, split).perplexity[i]) }));
  const roles = Object.fromEntries(Object.keys(ROLES).map((role) => [role, DATA.role_trials[role]
    .map(([run, id]) => ids.find((n) => table.run[n] === run && table.trial_id[n] === id))
    .filter((n) => n !== undefined)]));
  const special = Object.values(roles).flat();
  const x = measured("x", ids.flatMap((n) => of(n, "validation").epoch), "Epoch", { pad: 0.01 });
  x.scale = { ...x.scale, type: "linear", domain: [0, Math.max(1, ...ids.flatMap((n) => of(n, "validation").epoch))] };
  x.axis = { scale: "x", orient: "bottom", title: "Epoch", tickMinStep: 1, format: "d" };
  const y = measured("y", curves.flatMap((curve) => curve.perplexity), "Perplexity");
  const grey = ids.filter((n) => !special.includes(n)).flatMap((n) => [...rows(n, "validation"), { x: 0, y: 1,
    ok: false }]);
  const view = await draw(host, {
    height: 360,
    data: [{ name: "grey", values: grey }, ...Object.entries(roles).flatMap(([role, found]) => [
      { name: role, values: found.flatMap((n) => rows(n, "validation")) },
      { name: `${role}-train`, values: found.flatMap((n) => rows(n, "train")) },
    ]), { name: "focus", values: [] }, { name: "kept", values: [] }, { name: "ends",
      values: Object.entries(roles).flatMap(([role, found]) => found.slice(0, 1).map((n) => ({
        ...rows(n, "validation").at(-1), role }))) }],
    scales: [x.scale, y.scale],
    axes: [x.axis, y.axis],
    marks: [
      lines("grey", { stroke: "var(--task)", strokeWidth: 1.1, strokeOpacity: Math.max(0.25, Math.min(0.8,
        12 / ids.length)) }, { defined: { field: "ok" } }),
      ...Object.entries(ROLES).flatMap(([role, [stroke]]) => [
        each(`${role}-train`, lines("", { stroke, strokeWidth: 1.3, strokeDash: [2, 3] }, { defined: { field: "ok" } })),
        each(role, lines("", { stroke, strokeWidth: 2 }, { defined: { field: "ok" } })),
      ]),
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 }, { defined: { field: "ok" } })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2.4 }, { defined: { field: "ok" } }),
    ],
  });
  const pixels = ids.map((n) => rows(n, "validation").map(({ x: a, y: b }) => [a, b]));
  const away = (points, px, py) => {
    const [sx, sy] = [view.scale("x"), view.scale("y")];
    let least = Infinity;
    for (let i = 0; i < points.length; i += 1) {
      const [ax, ay] = [sx(points[i][0]), sy(points[i][1])];
      const [bx, by] = i + 1 < points.length ? [sx(points[i + 1][0]), sy(points[i + 1][1])] : [ax, ay];
      const length = (bx - ax) ** 2 + (by - ay) ** 2;
      const t = length ? Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length)) : 0;
      least = Math.min(least, Math.hypot(ax + t * (bx - ax) - px, ay + t * (by - ay) - py));
    }
    return least;
  };
  const nearest = (px, py) => {
    const found = closest(pixels.map((points) => away(points, px, py)), 25);
    return found === null ? null : ids[found];
  };
  readable(host, view, trials, {
    nearest,
    place: (n) => {
      const points = rows(n, "validation");
      const end = points.find((point) => point.x === table.best_epoch[n]) ?? points.at(-1);
      return [view.scale("x")(end.x), view.scale("y")(end.y)];
    },
    rows: (n) => rows(n, "validation"),
    order: ids,
    lines: trialLines,
    label: "Validation perplexity of each trial by epoch. Arrow keys go from trial to trial, Enter keeps one.",
  });
}

/** `τ = 100`, `pfedme, τ = 100`. */
const fitName = (n) => (DATA.trials.method[n] === "map" ? `τ = ${DATA.trials.fit[n]}` : DATA.trials.fit[n]);

function trialLines(n) {
  const table = DATA.trials;
  return [`${fitName(n)}, trial ${shown(table.trial_id[n])}`, `seed ${table.seed[n]}, ${table.status[n]}`,
    `best epoch ${table.best_epoch[n] ?? "–"} of ${table.epochs[n] ?? "–"}`,
    `validation perplexity ${perplexityText(number(table.validation_perplexity[n]))}, test ${
      perplexityText(number(table.test_perplexity[n]))}`];
}
