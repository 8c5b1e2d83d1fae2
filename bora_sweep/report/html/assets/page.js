// The page, from its data: words first, then the charts from top to bottom, each in a frame of its own.

function drawWords() {
  at("run").textContent = DATA.runs.map(shown).join(", ");
  const [first, ...more] = DATA.words.answer;
  at("answer").querySelector("h1").textContent = joined(first.find(([style]) => style === "strong")[1]);
  paragraphs(at("answer-more"), [first.filter(([style]) => style !== "strong"), ...more]);
  paragraphs(at("notes"), DATA.words.notes, "p", { class: "note" });
  at("facts").append(...DATA.facts.map(([name, value, more_]) => element("div", {}, element("dt", {}, name),
    element("dd", {}, value, more_ ? element("small", {}, more_) : null))));
  const places = { "tau-caption": "figure_2", choosing: "choosing", verdicts: "verdicts", "task-caption": "tasks",
    "learning-caption": "learning", "sizes-caption": "figure_1", "gains-caption": "figure_3",
    "distance-caption": "figure_4", "perplexity-caption": "figure_5", "settings-caption": "settings",
    measured: "measured" };
  for (const [id, name] of Object.entries(places)) paragraphs(at(id), DATA.words[name] ?? []);
  paragraphs(at("tau-caption"), DATA.words.tau);
  at("each-heading").textContent = `Each of ${counted(NAMES.length, "task")}`;
}

function drawSettings() {
  const { yaml, differ, versions, devices } = DATA.configuration;
  const sections = [];
  at("config").append(...yaml.split("\n").map((line) => {
    const [, indent, key] = /^( *)([\w-]+):/.exec(line) ?? [null, "", ""];
    sections.splice(indent.length / 2, Infinity, key);
    const differs = key && differ.includes(sections.join("."));
    return element("span", { class: differs ? "differs" : null }, `${line}${differs ? "  # differs between trials" : ""}\n`);
  }));
  const rows = versions.flatMap((text) => Object.entries(JSON.parse(text)));
  const pairs = [...rows, ...devices.map((device) => ["device", device])];
  makeTable(at("versions"), "Versions", [
    { title: "Package", head: true, value: (i) => pairs[i][0], cell: (i) => pairs[i][0] },
    { title: "Version", value: (i) => String(pairs[i][1]), cell: (i) => String(pairs[i][1]) },
  ], pairs.length);
  const splits = DATA.splits;
  makeTable(at("splits"), "Splits", [
    { title: "Split", head: true, value: (i) => splits.split[i], cell: (i) => splits.split[i] },
    numeric("Documents", splits.documents, amountText), numeric("Tokens", splits.tokens, amountText),
    numeric("Fewest of a task", splits.fewest, amountText), numeric("Median", splits.median, amountText),
    numeric("Most", splits.most, amountText),
  ], splits.split.length);
}

/** Auto follows the system, which the style sheet does; a choice holds as long as the page is open. */
function followScheme() {
  at("scheme").addEventListener("change", ({ target }) => {
    document.documentElement.dataset.scheme = target.value;
  });
}

function legend(host, items) {
  const swatch = (color, shape) => {
    const drawn = /^(line|open)/.test(shape);
    return element("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" }, element("svg:path", {
      d: SHAPES[shape], fill: drawn ? "none" : color, "fill-opacity": shape === "band" ? 0.3 : null,
      stroke: drawn ? color : null, "stroke-width": 2, "stroke-dasharray": shape === "line-dotted" ? "2 2" : null,
    }));
  };
  host.before(element("p", { class: "legend" }, ...items.map(([color, shape, text]) => element("span", {},
    swatch(color, shape), text))));
}
const SHAPES = {
  square: "M-4-4H4V4H-4Z", "triangle-up": "M0-4.6L5 4H-5Z", diamond: "M0-5.6L4.6 0L0 5.6L-4.6 0Z",
  "open-diamond": "M0-5.2L4.2 0L0 5.2L-4.2 0Z",
  circle: "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z", band: "M-6-5H6V5H-6Z", strip: "M-6-2H6V2H-6Z", line: "M-6 0H6",
  "line-dotted": "M-6 0H6",
};

function drawLegends() {
  const best = `best, τ = ${tauText(number(DATA.best_tau))}`;
  const ends = Object.entries(ENDS).filter(([end]) => DATA.role_trials[end].length);
  const roles = [...ends.map(([end, text]) => [...ROLES[end], text]), [...ROLES.best, best]];
  const simpler = number(DATA.one_standard_error_tau);
  legend(at("tau-legend"), [...roles,
    ...(simpler === number(DATA.best_tau) ? [] : [["var(--best)", "open-diamond", `by one standard error, τ = ${
      tauText(simpler)}`]]), ["var(--task)", "band", "95% interval of each τ alone"],
    ...(DATA.smooth ? [["var(--ink)", "line", "smooth curve with the 95% band of its shape"]] : []),
    ...(DATA.as_good ? [["var(--best)", "strip", "τ as good as the best on validation"]] : [])]);
  legend(at("chart-learning"), [...roles.map(([color, , text]) => [color, "line", text]),
    ["var(--task)", "line", "other fits"], ["var(--task)", "line-dotted", "on the training split"]]);
  const compared = Object.keys(ENDS).filter((end) => DATA.gains[end]);
  if (compared.length) {
    legend(at("chart-gains"), compared.map((end) => [ROLES[end][0], end === "independent" ? "circle" : "triangle-up",
      `against ${ENDS[end]}`]));
  }
}

const isRelative = () => document.querySelector('input[name="scale"]:checked').value === "relative";

function trendRows(name) {
  const found = DATA.trends[name];
  if (!found) return [];
  const [x, y, low, high] = ["documents", "middle", "low", "high"].map((part) => numbers(found[part]));
  return x.map((documents, i) => ({ x: documents, y: y[i], low: low[i], high: high[i] }));
}

function gainSeries() {
  return Object.keys(ENDS).filter((end) => DATA.gains[end]).map((end) => {
    const [values, low, high] = ["improvement", "low", "high"].map((name) => numbers(DATA.gains[end][name]));
    const told = DATA.gains[end].verdict.map((verdict) => verdict !== "no evidence");
    const [color, shape] = [ROLES[end][0], end === "independent" ? "circle" : "triangle-up"];
    return { values, low, high, told, trend: trendRows(`improvement_${end}`), color, shape };
  });
}

const CHARTS = {
  "chart-overall": drawOverall,
  "chart-each": (host) => drawEach(host, isRelative()),
  "chart-learning": drawLearning,
  "chart-sizes": drawSizes,
  "chart-gains": (host) => drawBySize(host, gainSeries(), "Reduction of test perplexity", { percent: true,
    intervals: true }),
  "chart-distance": (host) => drawBySize(host, [{ values: numbers(TASKS.distance), color: "var(--best)",
    shape: "circle", trend: trendRows("distance") }], "Distance to the global adapter"),
  "chart-perplexity": (host) => drawBySize(host, [{ values: numbers(TASKS.perplexity.best), color: "var(--best)",
    shape: "circle", low: numbers(TASKS.best_low), high: numbers(TASKS.best_high), trend: trendRows("perplexity") }],
  "Test perplexity", { intervals: true }),
};

/** What a chart needs that the results may not hold yet. */
const MISSING = {
  "chart-gains": () => !gainSeries().length,
  "chart-distance": () => !TASKS.distance || TASKS.distance.every((value) => value === null),
};

/** Milliseconds since the page was asked for: words and tables read, the first charts, all of them drawn. */
function note(name) {
  document.documentElement.dataset[name] = String(Math.round(performance.now()));
}

/** Let the browser show what is there. */
const shownFirst = () => new Promise((done) => setTimeout(done));

async function drawCharts() {
  for (const [id, work] of Object.entries(CHARTS)) {
    if (MISSING[id]?.()) at(id).remove();
    else await work(at(id));
    if (id === "chart-each") {
      note("first");
      await shownFirst();
    }
  }
}

/** Charts keep the width of the column, and of the sheet of paper. */
function followWidth() {
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.drawn && target.clientWidth && target.drawn.width() !== target.clientWidth) {
        target.drawn.width(target.clientWidth).runAsync().then(() => target.trace?.());
      }
    }
  });
  for (const id of Object.keys(CHARTS)) if (at(id)) resized.observe(at(id));
}

/** Paper cannot be clicked. */
function openOnPaper() {
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
}

async function main() {
  followScheme();
  openOnPaper();
  drawWords();
  drawLegends();
  drawTasks();
  drawKept();
  drawTaus();
  drawMethods();
  drawTrials();
  drawSettings();
  note("read");
  await shownFirst();
  at("scale").addEventListener("change", () => drawEach(at("chart-each"), isRelative()));
  await drawCharts();
  followWidth();
  note("drawn");
}

main();
