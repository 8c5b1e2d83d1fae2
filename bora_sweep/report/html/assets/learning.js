// Learning curves, a line for each trial.

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
  const grey = ids.filter((n) => !special.includes(n)).map((n) => rows(n, "validation").map((row) => [row.x, row.y]));
  const view = await draw(host, {
    height: 360,
    data: [{ name: "grey", values: [] }, ...Object.entries(roles).flatMap(([role, found]) => [
      { name: role, values: found.flatMap((n) => rows(n, "validation")) },
      { name: `${role}-train`, values: found.flatMap((n) => rows(n, "train")) },
    ]), { name: "focus", values: [] }, { name: "kept", values: [] }],
    scales: [x.scale, y.scale],
    axes: [x.axis, y.axis],
    marks: [
      traced("grey", { stroke: "var(--task)", strokeWidth: 1.1, strokeOpacity: Math.max(0.25, Math.min(0.8,
        12 / ids.length)) }),
      ...Object.entries(ROLES).flatMap(([role, [stroke]]) => [
        each(`${role}-train`, lines("", { stroke, strokeWidth: 1.3, strokeDash: [2, 3] }, { defined: { field: "ok" } })),
        each(role, lines("", { stroke, strokeWidth: 2 }, { defined: { field: "ok" } })),
      ]),
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 }, { defined: { field: "ok" } })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2.4 }, { defined: { field: "ok" } }),
    ],
  });
  await trace(host, view, { grey });
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
