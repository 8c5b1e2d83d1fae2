// Learning curves, a line for each trial.

/** Validation perplexity of every trial by epoch; of the ends, the best and those kept also that of training. */
async function drawLearning(host, chart) {
  if (!chart) {
    host.replaceChildren(element("p", { class: "empty" }, "No trial has a learning curve yet."));
    return;
  }
  const { texts: names, values } = DATA.tables.trials;
  const curves = { train: new Map(), validation: new Map() };
  for (const { trial, split, epoch, perplexity } of chart.curves) {
    curves[split].set(trial, rowsOf({ x: epoch, y: perplexity }).map((row) => ({ ...row, of: trial })));
  }
  const shown = names.trial_id.map((_, n) => n).filter((n) => curves.validation.has(n));
  const roles = Object.entries(chart.roles);
  const marked = new Set(roles.flatMap(([, rows]) => rows));
  const grey = shown.filter((n) => !marked.has(n)).map((n) => curves.validation.get(n).map(({ x, y }) => [x, y]));
  const ofRole = (rows, split) => rows.flatMap((n) => curves[split].get(n) ?? []);
  const view = await draw(host, {
    height: 360,
    data: [{ name: "grey", values: [] }, ...roles.flatMap(([role, rows]) => [
      { name: role, values: ofRole(rows, "validation") }, { name: `${role}-train`, values: ofRole(rows, "train") },
    ])],
    axes: [axisOf("x", chart.x), axisOf("y", chart.y)],
    marks: [
      traced("grey", { stroke: "var(--task)", strokeWidth: 1.1,
        strokeOpacity: Math.max(0.25, Math.min(0.8, 12 / shown.length)) }),
      ...roles.flatMap(([role]) => [
        each(`${role}-train`, lines("", { stroke: colorOf(role), strokeWidth: 1.3, strokeDash: [2, 3] })),
        each(role, lines("", { stroke: colorOf(role), strokeWidth: 2 })),
      ]),
      each("kept", lines("", { stroke: "var(--pick)", strokeWidth: 2 })),
      lines("focus", { stroke: "var(--ink)", strokeWidth: 2.4 }),
    ],
  });
  await trace(host, view, { grey });
  const nearest = (px, py) => {
    const found = closest(shown.map((n) => distance(view, curves.validation.get(n), px, py)), 25);
    return found === null ? null : shown[found];
  };
  readable(host, view, trials, {
    nearest,
    place: (n) => {
      const points = curves.validation.get(n);
      const end = points.find((point) => point.x === values.best_epoch[n]) ?? points.at(-1);
      return [view.scale("x")(end.x), view.scale("y")(end.y)];
    },
    marks: (n) => curves.validation.get(n) ?? [],
    order: shown,
    lines: (n) => tipOf("trials", n),
    label: chart.label,
  });
}

/** Pixels from a place in the plot to a line through points. */
function distance(view, points, px, py) {
  const [sx, sy] = [view.scale("x"), view.scale("y")];
  let least = Infinity;
  points.forEach((point, i) => {
    const next = points[i + 1] ?? point;
    const [ax, ay, bx, by] = [sx(point.x), sy(point.y), sx(next.x), sy(next.y)];
    const length = (bx - ax) ** 2 + (by - ay) ** 2;
    const t = length ? Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length)) : 0;
    least = Math.min(least, Math.hypot(ax + t * (bx - ax) - px, ay + t * (by - ay) - py));
  });
  return least;
}
