// The page, from its data: words and tables first, then the charts from top to bottom, each in a frame of its own.

const WORDS = { "tau-caption": "figure_2", choosing: "choosing", "taus-caption": "table_1", "methods-caption": "methods",
  verdicts: "verdicts", "task-caption": "tasks", "learning-caption": "learning", "sizes-caption": "figure_1",
  "gains-caption": "figure_3", "distance-caption": "figure_4", "level-caption": "figure_5",
  "pooling-caption": "figure_6", cost: "cost", "cost-to-serve": "cost_to_serve",
  "trial-caption": "trials", "settings-caption": "settings", measured: "measured" };

/** What is bold in the first paragraph into the element of this id, the rest below it. */
function headed(id, [first, ...more], host) {
  at(id).textContent = unbroken(first.find(([style]) => style === "strong")[1]);
  paragraphs(host, [first.filter(([style]) => style !== "strong"), ...more].filter((runs) => runs.length));
}

function drawWords() {
  at("run").textContent = DATA.runs.join(", ");
  headed("recommendation", DATA.words.recommendation, at("recommendation-more"));
  headed("answer-tau", DATA.words.answer, at("answer-more"));
  paragraphs(at("notes"), DATA.words.notes, { class: "note" });
  at("facts").append(...DATA.facts.map(([name, value, remark]) => element("div", {}, element("dt", {}, name),
    element("dd", {}, value, element("small", {}, remark)))));
  for (const [id, name] of Object.entries(WORDS)) paragraphs(at(id), DATA.words[name]);
  paragraphs(at("tau-caption"), DATA.words.tau);
  at("each-heading").textContent = DATA.charts.each.heading;
  for (const part of document.querySelectorAll("[data-measure]")) part.textContent = DATA.measure;
}

function drawTables() {
  const { taus, methods, splits, versions } = DATA.tables;
  drawAlike();
  searchTasks(drawTable(at("task-table"), TASKS, tasks));
  drawKept();
  drawTable(at("taus-table"), taus);
  at("methods").hidden = !methods;
  if (methods) drawTable(at("methods-table"), methods);
  drawTable(at("trial-table"), DATA.tables.trials, trials);
  drawTable(at("splits"), splits);
  drawTable(at("versions"), versions);
  drawTable(at("cost-table"), DATA.tables.cost);
  drawTable(at("origin"), DATA.tables.origin);
  at("config").append(...DATA.configuration.lines.map(([line, differs]) => element("span", { class: differs ? "differs"
    : null }, `${line}${differs ? "  # differs between trials" : ""}\n`)));
}

const SHAPES = {
  square: "M-4-4H4V4H-4Z", "triangle-up": "M0-4.6L5 4H-5Z", diamond: "M0-5.6L4.6 0L0 5.6L-4.6 0Z",
  circle: "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z", dot: "M-2.6 0A2.6 2.6 0 1 0 2.6 0A2.6 2.6 0 1 0-2.6 0Z",
  band: "M-6-5H6V5H-6Z", strip: "M-6-2H6V2H-6Z", bar: "M0-6V6", line: "M-6 0H6",
};
const DASHES = { "line-dotted": "2 2", "line-dashed": "5 3" };

/** A mark of a legend, its shape by its name: `open-` is not filled, and lines may be dotted, dashed or thin. */
function swatch(color, mark) {
  const isStroke = /^(line|open|bar)/.test(mark);
  return element("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" }, element("svg:path", {
    d: SHAPES[mark.replace(/^open-|^(line)-.*/, "$1")], fill: isStroke ? "none" : colorOf(color),
    "fill-opacity": mark === "band" ? 0.3 : null, stroke: isStroke ? colorOf(color) : null,
    "stroke-width": mark === "line-thin" ? 1 : mark.startsWith("open") ? 1.4 : 2, "stroke-dasharray": DASHES[mark],
  }));
}

/** Entries of a color, a mark and a text, before the chart. */
function drawLegend(host, items) {
  if (!items?.length) return;
  host.before(element("p", { class: "legend" }, ...items.map(([color, mark, text]) => element("span", {},
    swatch(color, mark), unbroken(text)))));
}

/** Auto follows the system, which the style sheet does; another choice holds as long as the page is open. */
function followScheme() {
  at("scheme").addEventListener("change", ({ target }) => {
    document.documentElement.dataset.scheme = target.value;
  });
}

const CHARTS = {
  overall: drawOverall, each: drawEach, learning: drawLearning, sizes: drawSizes, gains: drawBySize,
  distance: drawBySize, level: drawBySize, pooling: drawPooling,
};

/** A measure that did not choose tau: its answer, table, and Figures 2 and 3. Returns what draws its charts. */
function addMeasure({ title, words, table, charts, legend: entries }, n) {
  const hosts = Object.fromEntries(["overall", "each", "gains"].filter((name) => charts[name])
    .map((name) => [name, element("div", { class: "chart", id: `chart-${n}-${name}` })]));
  const box = (kind, text) => {
    const made = element("div", { class: kind });
    paragraphs(made, text);
    return made;
  };
  const figure = (heading, name) => element("figure", {}, element("h4", {}, heading), hosts[name]);
  const [scroll, legend] = [element("div", { class: "scroll" }), element("div")];
  const gains = hosts.gains ? figure("Figure 3. Who gains", "gains") : element("h4", {}, "Figure 3. Who gains");
  at("measures").append(element("h3", {}, title), box("text", [...words.answer, ...words.verdicts]), scroll,
    box("text caption", words.table), element("div", { class: "pair" }, figure("All tasks together", "overall"),
      figure(charts.each.heading, "each")), legend, box("text caption", words.figure_2), gains,
    box("text caption", words.figure_3));
  drawTable(scroll, table);
  drawLegend(legend, entries);
  if (hosts.gains) drawLegend(hosts.gains, charts.gains.legend);
  return async () => {
    await drawOverall(hosts.overall, charts.overall);
    await drawEach(hosts.each, charts.each);
    if (hosts.gains) await drawBySize(hosts.gains, charts.gains);
  };
}

function addMeasures() {
  at("measures").hidden = at("measures-link").hidden = !DATA.measures.length;
  return DATA.measures.map(addMeasure);
}

/** Milliseconds since the page was asked for: words and tables are there, the first charts, all of them. */
function note(name) {
  document.documentElement.dataset[name] = String(Math.round(performance.now()));
}

/** Let the browser show what is there. */
const shownFirst = () => new Promise((done) => setTimeout(done));

async function drawCharts() {
  for (const [name, work] of Object.entries(CHARTS)) {
    const host = at(`chart-${name}`);
    if (!DATA.charts[name] && name !== "learning") host.remove();
    else await work(host, DATA.charts[name]);
    if (name === "each") {
      note("first");
      await shownFirst();
    }
  }
}

/** Charts keep the width of the column, and of the sheet of paper. A path of the width before would count as part of
 * the drawing, which would then be made small enough to hold it. */
function followWidth() {
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.drawn && target.clientWidth && target.drawn.width() !== target.clientWidth) {
        target.untrace?.();
        target.drawn.width(target.clientWidth).runAsync().then(() => target.trace?.());
      }
    }
  });
  for (const chart of document.querySelectorAll(".chart")) resized.observe(chart);
}

/** Paper cannot be clicked. */
function openOnPaper() {
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
}

async function main() {
  followScheme();
  openOnPaper();
  drawWords();
  drawLegend(at("tau-legend"), DATA.legends.tau);
  drawLegend(at("chart-learning"), DATA.legends.learning);
  for (const name of ["gains", "distance", "level", "pooling"]) drawLegend(at(`chart-${name}`), DATA.charts[name]?.legend);
  drawTables();
  const others = addMeasures();
  hintAll();
  note("read");
  await shownFirst();
  at("scale").addEventListener("change", () => drawEach(at("chart-each"), DATA.charts.each));
  await drawCharts();
  for (const drawOther of others) await drawOther();
  followWidth();
  note("drawn");
}

main();
