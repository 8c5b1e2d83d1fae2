// How a chart is drawn (Vega, as SVG), and how a pointer or the keyboard reads it. Colours are those of the style
// sheet, by name: a change of scheme, or printing, needs no new drawing.

const FONT = getComputedStyle(document.body).fontFamily;
const colorOf = (name) => `var(--${name})`;

const CONFIG = {
  background: null,
  axis: {
    labelFont: FONT, titleFont: FONT, labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 400,
    labelColor: "var(--soft)", titleColor: "var(--ink)", domainColor: "var(--task)", tickColor: "var(--task)",
    gridColor: "var(--grid)", tickSize: 4, labelPadding: 5, titlePadding: 9, labelFlush: false,
  },
  axisY: { grid: true, domain: false, ticks: false },
};

/** Draw into a host; data sets `focus`, `kept` and `labels` are filled by `readable`. */
async function draw(host, { data, axes, scales = [], ...spec }) {
  host.replaceChildren();
  const whole = {
    $schema: "https://vega.github.io/schema/vega/v6.json", config: CONFIG, width: host.clientWidth,
    autosize: { type: "fit", contains: "padding", resize: false }, padding: { left: 1, right: 10, top: 8, bottom: 1 },
    data: [...data, ...["focus", "kept", "labels"].map((name) => ({ name, values: [] }))],
    scales: [...scales, ...axes.flatMap((axis) => axis.scales)], axes: axes.map(({ axis }) => axis), ...spec,
  };
  const options = {
    mode: "vega", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: () => {}, hover: false,
  };
  const { view } = await vegaEmbed(host, whole, options);
  host.querySelector("svg").setAttribute("aria-hidden", "true"); // the label of the host tells what it shows
  host.drawn = view;
  return view;
}

/** An axis with its ticks and their texts as the data has them: the scales it needs, and Vega's axis. */
function axisOf(name, { title, type, domain, ticks, texts: range }, more = {}) {
  return {
    scales: [
      { name, type, domain, range: name === "x" ? "width" : "height", zero: false, nice: false },
      { name: `${name}-text`, type: "ordinal", domain: ticks, range },
    ],
    axis: {
      scale: name, orient: name === "x" ? "bottom" : "left", title, values: ticks,
      encode: { labels: { update: { text: { scale: `${name}-text`, field: "value" } } } }, ...more,
    },
  };
}

/**
 * Let a chart be read: the pointer or an arrow key looks at a row, a click or Enter keeps it, Escape looks away.
 *
 * nearest(x, y): the row by a place in the plot, or null; place(row): its place; marks(row): its rows of the data sets
 * `focus` and `kept`; order: the way of the arrow keys; lines(row): what is read of it, its name first; labels(rows):
 * rows of the data set `labels` for the rows kept.
 */
function readable(host, view, selection, { nearest, place, marks, order, lines, label, labels = () => [] }) {
  const listen = (name, work) => host.addEventListener(name, work, { signal: host.reading.signal });
  host.reading?.abort();
  host.reading = new AbortController();
  host.classList.add("point");
  for (const [name, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": label })) {
    host.setAttribute(name, value);
  }
  const origin = () => {
    const [left, top] = view.origin();
    const box = host.querySelector("svg").getBoundingClientRect();
    return [box.left + left + view.padding().left, box.top + top + view.padding().top];
  };
  const rowAt = (event) => {
    const [left, top] = origin();
    return nearest(event.clientX - left, event.clientY - top);
  };
  const look = (row, event) => {
    selection.look(row);
    if (row === null) return hideTip();
    const [left, top] = origin();
    const [x, y] = place(row, event ? event.clientX - left : null);
    showTip(lines(row), left + x, top + y);
  };
  listen("pointermove", (event) => look(rowAt(event), event));
  listen("pointerleave", () => look(null));
  listen("click", (event) => {
    const row = rowAt(event);
    if (row !== null) selection.toggle(row);
  });
  listen("blur", () => look(null));
  listen("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const now = order.indexOf(selection.focus);
    if (event.key in steps) {
      const next = now < 0 ? 0 : (now + steps[event.key] + order.length) % order.length;
      look(order[next]);
      announce(lines(order[next]).join(", "));
    } else if ((event.key === "Enter" || event.key === " ") && now >= 0) {
      selection.toggle(selection.focus);
      announce(`${lines(selection.focus)[0]} ${selection.kept.includes(selection.focus) ? "kept" : "let go"}`);
    } else if (event.key === "Escape") {
      look(null);
    } else {
      return;
    }
    event.preventDefault();
  });
  selection.listen(host.id, () => {
    view.data("focus", selection.focus === null ? [] : marks(selection.focus));
    view.data("kept", selection.kept.flatMap(marks));
    view.data("labels", labels(selection.kept));
    view.runAsync();
  });
}

function showTip([name, ...lines], x, y) {
  const tip = at("tip");
  tip.replaceChildren(element("strong", {}, element("bdi", {}, name)),
    ...lines.map((line) => element("span", {}, unbroken(line))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, x + 16 + width < innerWidth ? x + 16 : x - 16 - width)}px`;
  tip.style.top = `${Math.max(8, y - height - 10 > 0 ? y - height - 10 : y + 16)}px`;
}

function hideTip() {
  at("tip").hidden = true;
}

/** The index of the least distance below `most` pixels, or null. */
function closest(distances, most) {
  let [best, least] = [null, most];
  distances.forEach((distance, index) => {
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}

// Marks

const field = (scale, name) => ({ scale, field: name });
const fixed = (values) => Object.fromEntries(Object.entries(values).map(([key, value]) => [key, { value }]));
const mark = (type, data, update) => ({ type, from: { data }, interactive: false, encode: { update } });
const xy = { x: field("x", "x"), y: field("y", "y") };

/** Columns of numbers as rows. */
function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, number(columns[name][i])])));
}

const lines = (data, style) => mark("line", data, { ...xy, defined: { signal: "isFinite(datum.y)" },
  ...fixed({ strokeJoin: "round", ...style }) });
const symbols = (data, style, more = {}) => mark("symbol", data, { ...xy, ...fixed(style), ...more });
const band = (data, style) => mark("area", data, { x: field("x", "x"), y: field("y", "low"), y2: field("y", "high"),
  ...fixed(style) });
/** A line across the plot at each row's y. */
const across = (data, style) => mark("rule", data, { x: { value: 0 }, x2: { signal: "width" }, y: field("y", "y"),
  ...fixed(style) });

/** The same mark for each of several, which the rows name in `of`. */
const each = (data, one) => ({
  type: "group", from: { facet: { name: `${data}-of`, data, groupby: "of" } },
  marks: [{ ...one, from: { data: `${data}-of` } }],
});

/** Text over a halo of the paper's colour, at a row's place and with its own shift and alignment. */
function texts(data, style) {
  const own = { ...xy, text: { field: "text" }, dx: { field: "dx" }, dy: { field: "dy" }, align: { field: "align" } };
  const text = (more) => mark("text", data, { ...own, ...fixed({ font: FONT, fontSize: 12, baseline: "middle", ...style,
    ...more }) });
  return [text({ stroke: "var(--paper)", strokeWidth: 4, strokeJoin: "round" }), text({})];
}

/** Many lines as one path, set by `trace`: as rows of their own, a thousand of them would take a second to draw. */
const traced = (data, style) => mark("path", data, { path: { field: "path" }, ...fixed({ strokeJoin: "round", ...style }) });

/** Put lines, each of [x, y], into a data set as one path; it breaks where a value is not known. */
function trace(host, view, paths, placeOf = null) {
  const pixel = (value) => Math.round(10 * value) / 10;
  host.untrace = () => Object.keys(paths).forEach((data) => view.data(data, []));
  host.trace = () => {
    const [sx, sy] = [placeOf ?? view.scale("x"), view.scale("y")];
    for (const [data, many] of Object.entries(paths)) {
      const path = many.map((line) => {
        let pen = "M";
        return line.map(([x, y]) => {
          const step = Number.isFinite(y) ? `${pen}${pixel(sx(x))},${pixel(sy(y))}` : "";
          pen = step ? "L" : "M";
          return step;
        }).join("");
      }).join("");
      view.data(data, path ? [{ path }] : []);
    }
    return view.runAsync();
  };
  return host.trace();
}
