// How a chart is drawn (Vega, as SVG), and how a pointer or the keyboard reads it. Colours are those of the style
// sheet, by name, so that a change of scheme, or printing, needs no new drawing.

const FONT = getComputedStyle(document.body).fontFamily;
const FEW = 40; // tasks that a figure names, or gives an interval each

const CONFIG = {
  background: null,
  axis: {
    labelFont: FONT, titleFont: FONT, labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 400,
    labelColor: "var(--soft)", titleColor: "var(--ink)", domainColor: "var(--task)", tickColor: "var(--task)",
    gridColor: "var(--grid)", tickSize: 4, labelPadding: 5, titlePadding: 9, labelFlush: false,
  },
  axisY: { grid: true, domain: false, ticks: false, tickCount: 6 },
};

/** Which of the tasks, or of the trials, is looked at, and which are kept; tells those who draw it. */
class Choice {
  constructor() {
    [this.focus, this.kept, this.listeners] = [null, [], []];
  }
  look(index) {
    if (index === this.focus) return;
    this.focus = index;
    this.tell();
  }
  toggle(index) {
    this.kept = this.kept.includes(index) ? this.kept.filter((other) => other !== index) : [...this.kept, index];
    this.tell();
  }
  clear() {
    this.kept = [];
    this.tell();
  }
  tell() {
    for (const listener of this.listeners) listener();
  }
}

async function draw(host, spec) {
  host.replaceChildren();
  const whole = {
    $schema: "https://vega.github.io/schema/vega/v6.json", config: CONFIG, width: host.clientWidth,
    autosize: { type: "fit", contains: "padding", resize: false }, padding: { left: 1, right: 10, top: 8, bottom: 1 },
    ...spec,
  };
  const options = {
    mode: "vega", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: () => {}, hover: false,
  };
  const { view } = await vegaEmbed(host, whole, options);
  host.querySelector("svg").setAttribute("aria-hidden", "true"); // told by the label of what holds it
  host.drawn = view;
  return view;
}

/**
 * Let a chart be read: the pointer or an arrow key looks at one, a click or Enter keeps it, Escape looks away.
 *
 * nearest(x, y): the one by a place in the plot, or null; place(index): its place; rows(index): its rows for the data
 * sets `focus` and `kept`; order: the way of the arrow keys; lines(index): what is said of it, its name first.
 */
function readable(host, view, choice, { nearest, place, rows, order, lines, label }) {
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
  const hear = (event) => {
    const [left, top] = origin();
    return nearest(event.clientX - left, event.clientY - top);
  };
  const look = (index, event) => {
    choice.look(index);
    if (index === null) return hideTip();
    const [left, top] = origin();
    const [x, y] = place(index, event ? event.clientX - left : null);
    showTip(lines(index), left + x, top + y);
  };
  listen("pointermove", (event) => look(hear(event), event));
  listen("pointerleave", () => look(null));
  listen("click", (event) => {
    const index = hear(event);
    if (index !== null) choice.toggle(index);
  });
  listen("blur", () => look(null));
  listen("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const now = order.indexOf(choice.focus);
    if (event.key in steps) {
      const next = now < 0 ? 0 : (now + steps[event.key] + order.length) % order.length;
      look(order[next]);
      say(lines(order[next]).join(", "));
    } else if ((event.key === "Enter" || event.key === " ") && now >= 0) {
      choice.toggle(choice.focus);
      say(`${lines(choice.focus)[0]} ${choice.kept.includes(choice.focus) ? "kept" : "let go"}`);
    } else if (event.key === "Escape") {
      look(null);
    } else {
      return;
    }
    event.preventDefault();
  });
  const show = () => {
    view.data("focus", choice.focus === null ? [] : rows(choice.focus));
    view.data("kept", choice.kept.flatMap((index) => rows(index)));
    view.runAsync();
  };
  const before = choice.listeners.indexOf(host.show);
  if (before >= 0) choice.listeners.splice(before, 1);
  host.show = show;
  choice.listeners.push(show);
  show();
}

function showTip([name, ...more], x, y) {
  const tip = at("tip");
  const said = more.map((line) => element("span", {}, joined(line)));
  tip.replaceChildren(element("strong", {}, element("bdi", {}, name)), ...said);
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

/** Ticks on a log axis: 1, 2, 5 times the powers of ten; more where it is short, fewer where it is long. */
function logTicks(low, high) {
  const steps = high / low < 15 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 300 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k += 1) {
    ticks.push(...steps.map((step) => step * 10 ** k));
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length > 1 ? inside : null;
}

/** About six round ticks on a linear axis, and how many decimals tell them apart. */
function evenTicks(low, high) {
  const raw = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(raw));
  const away = (factor) => Math.abs(Math.log((factor * power) / raw));
  const step = power * [1, 2, 5, 10].reduce((best, factor) => (away(factor) < away(best) ? factor : best));
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-12); k += 1) ticks.push(k * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** A scale and its axis for values; on logarithms where they span more than a factor of 5. */
function measured(name, values, title, { pad = 0.06, percent = false, zero = false } = {}) {
  const finite = values.filter(Number.isFinite);
  let [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [1, 2];
  const log = !percent && low > 0 && high / low > 5;
  const [a, b] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const room = (b - a || Math.abs(a) || 1) * pad;
  const back = (value) => (log ? 10 ** value : value);
  [low, high] = [zero ? 0 : back(a - room), back(b + room)];
  const even = evenTicks(low, high);
  const ticks = (log ? logTicks(low, high) : null) ?? even.ticks;
  const format = percent ? `+.${Math.max(0, even.digits - 2)}%` : log ? ",~g" : `,.${even.digits}f`;
  return {
    scale: {
      name, type: log ? "log" : "linear", domain: [low, high], range: name === "x" ? "width" : "height", zero: false,
      nice: false,
    },
    axis: {
      scale: name, orient: name === "x" ? "bottom" : "left", title, format, values: ticks,
      ...(percent ? { encode: { labels: { update: { text: { signal: "datum.value == 0 ? '0%' : datum.label" } } } } }
        : {}),
    },
  };
}

const field = (scale, name) => ({ scale, field: name });
const fixedEncoding = (values) => Object.fromEntries(Object.entries(values).map(([key, value]) => [key, { value }]));
const xy = { x: field("x", "x"), y: field("y", "y") };

const lines = (data, style, more = {}) => ({
  type: "line", from: { data }, interactive: false,
  encode: { update: { ...xy, ...fixedEncoding({ strokeJoin: "round", ...style }), ...more } },
});
const symbols = (data, style, more = {}) => ({
  type: "symbol", from: { data }, interactive: false, encode: { update: { ...xy, ...fixedEncoding(style), ...more } },
});
/** Many lines as one path, set by `trace`: as rows of their own, a thousand of them would take a second to draw. */
const traced = (data, style) => ({
  type: "path", from: { data }, interactive: false,
  encode: { update: { path: { field: "path" }, ...fixedEncoding({ strokeJoin: "round", ...style }) } },
});

/** Put lines, each of [x, y], into a data set as one path; it breaks where a value is not known. */
function trace(host, view, paths) {
  host.trace = () => {
    const [sx, sy] = [view.scale("x"), view.scale("y")];
    for (const [data, many] of Object.entries(paths)) {
      const path = many.map((line) => {
        let pen = "M";
        return line.map(([x, y]) => {
          const step = Number.isFinite(y) ? `${pen}${sx(x).toFixed(1)},${sy(y).toFixed(1)}` : "";
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

/** Lines of several, each of its own `of`. */
const each = (data, mark) => ({
  type: "group", from: { facet: { name: `${data}-of`, data, groupby: "of" } },
  marks: [{ ...mark, from: { data: `${data}-of` } }],
});
/** Text over a halo of the paper's colour, at a row's place and with its own shift and alignment. */
function texts(data, style) {
  const mark = (extra) => ({
    type: "text", from: { data }, interactive: false,
    encode: {
      update: {
        ...xy, text: { field: "text" }, dx: { field: "dx" }, dy: { field: "dy" }, align: { field: "align" },
        ...fixedEncoding({ font: FONT, fontSize: 12, baseline: "middle", ...style, ...extra }),
      },
    },
  });
  return [mark({ stroke: "var(--paper)", strokeWidth: 4, strokeJoin: "round" }), mark({})];
}

/** Places of ascending tau on a log axis, 0 and inf each on its own beyond a break. */
function tauAxis(taus) {
  const finite = taus.filter((tau) => tau > 0 && tau < Infinity).map(Math.log10);
  const [low, high] = finite.length ? [finite[0], finite[finite.length - 1]] : [0, 0];
  const gap = Math.max(0.4, 0.16 * (high - low));
  const place = (tau) => (tau === 0 ? low - gap : tau === Infinity ? high + gap : Math.log10(tau));
  const ends = taus.filter((tau) => tau === 0 || tau === Infinity);
  const power = (k) => `10${String(k).replace(/[-\d]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)])}`;
  let decades = [];
  for (let k = Math.ceil(low - 1e-9); k <= high + 1e-9; k += 1) decades.push(k);
  const step = 1 + Math.floor(decades.length / 7);
  decades = decades.filter((_, i) => i % step === 0);
  const inner = decades.length > 1 ? decades.map((k) => [k, power(k)])
    : taus.filter((tau) => tau > 0 && tau < Infinity).map((tau) => [Math.log10(tau), tauText(tau)]);
  const ticks = [...ends.map((tau) => [place(tau), tauText(tau)]), ...inner];
  return {
    place,
    data: { name: "breaks", values: ends.map((tau) => ({ x: place(tau) + (tau === 0 ? 0.55 : -0.55) * gap })) },
    scales: [
      { name: "x", domain: [Math.min(place(taus[0]), low) - 0.35 * gap,
        Math.max(place(taus[taus.length - 1]), high) + 0.35 * gap], range: "width", zero: false, nice: false },
      { name: "tick", type: "ordinal", domain: ticks.map(([x]) => x), range: ticks.map(([, text]) => text) },
    ],
    axis: {
      scale: "x", orient: "bottom", title: "Precision τ", values: ticks.map(([x]) => x), zindex: 1,
      encode: { labels: { update: { text: { scale: "tick", field: "value" } } } },
    },
    marks: [{
      type: "text", from: { data: "breaks" }, interactive: false, zindex: 2,
      encode: {
        update: {
          x: field("x", "x"), y: { signal: "height" },
          ...fixedEncoding({ text: "//", align: "center", baseline: "middle", fill: "var(--task)", fontSize: 12,
            font: FONT }),
        },
      },
    }],
  };
}
