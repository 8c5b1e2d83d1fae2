// The curve over tau, Figure 2: all tasks together, and each.

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
      { name: "simpler", values: simpler }, { name: "rules", values: rules }, { name: "focus", values: [] },
      { name: "kept", values: [] },
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
  const y = measured("y", values.flat(), relative ? "Test perplexity against the best τ" : "Test perplexity",
    { percent: relative });
  const { solid, dotted } = stretches(TAUS);
  const row = (d) => (i) => ({ x: axis.place(TAUS[i]), y: values[d][i], of: d, ok: Number.isFinite(values[d][i]) });
  const paths = (parts) => values.flatMap((own) => parts.map((part) => part.map((i) => [axis.place(TAUS[i]), own[i]])));
  const whole = (d) => TAUS.map((_, i) => row(d)(i));
  const label = (d) => {
    const last = whole(d)[TAUS.length - 1];
    return { ...last, text: inChart(NAMES[d]), dx: 2, dy: -9, align: "right" };
  };
  const opacity = Math.max(0.1, Math.min(0.7, 15 / NAMES.length));
  const view = await draw(host, {
    height: 330,
    data: [axis.data, { name: "solid", values: [] }, { name: "dotted", values: [] },
      { name: "focus", values: [] }, { name: "kept", values: [] }, { name: "labels", values: [] },
      { name: "zero", values: relative ? [{}] : [] }],
    scales: [...axis.scales, y.scale],
    axes: [axis.axis, y.axis],
    marks: [
      { type: "rule", from: { data: "zero" }, encode: { update: { x: { value: 0 }, x2: { signal: "width" },
        y: { scale: "y", value: 0 }, ...fixedEncoding({ stroke: "var(--task)", strokeWidth: 1 }) } } },
      traced("dotted", { stroke: "var(--task)", strokeWidth: 0.9, strokeOpacity: opacity / 2, strokeDash: [2, 3] }),
      traced("solid", { stroke: "var(--task)", strokeWidth: 0.9, strokeOpacity: opacity }),
      ...axis.marks,
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 }, { defined: { field: "ok" } })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2 }, { defined: { field: "ok" } }),
      symbols("focus", { fill: "var(--ink)", size: 16 }), symbols("kept", { fill: "var(--pick)", size: 14 }),
      ...texts("labels", { fill: "var(--ink)" }),
    ],
  });
  await trace(host, view, { solid: paths(solid), dotted: paths(dotted) });
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
  const column = (px) => (px === null ? TAUS.indexOf(number(DATA.best_tau))
    : closest(columns.map((c) => Math.abs(view.scale("x")(c) - px)), Infinity));
  readable(host, view, tasks, {
    nearest,
    place: (d, px) => [view.scale("x")(columns[column(px)]), view.scale("y")(values[d][column(px)])],
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
    return found ? `${intervalText(...["improvement", "low", "high"].map((name) => number(found[name][d])))} against τ = ${
      end === "independent" ? "0" : "∞"}: ${found.verdict[d]}` : null;
  });
  return [shown(NAMES[d]), `${counted(SIZES[d], "training document")}`,
    `test perplexity ${levelText(of("best"), number(TASKS.best_low[d]), number(TASKS.best_high[d]))} at τ = ${
      tauText(number(DATA.best_tau))}`,
    ...gain.filter((line) => line !== null)];
}
