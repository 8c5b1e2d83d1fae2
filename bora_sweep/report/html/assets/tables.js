// Tables that sort by their headings; the tasks' one is also searched and filtered.

/**
 * A table in `host`. A column has a title, value(i) to sort by, cell(i) to show, and maybe `left`, `head`, `why`.
 * Names and words ascend at the first click, numbers descend; what is not known is always last.
 */
function makeTable(host, label, columns, count, { sorted = null, descending = false, row = () => ({}) } = {}) {
  const body = element("tbody");
  const trs = Array.from({ length: count }, (_, i) => {
    const attributes = row(i);
    return element("tr", attributes, ...columns.map((column) => {
      const kind = [column.left ? "left" : "", column.why ? "why" : ""].join(" ").trim() || null;
      return element(column.head ? "th" : "td", column.head ? { scope: "row" } : { class: kind }, column.cell(i));
    }));
  });
  const heads = columns.map((column) => element("th", { scope: "col", class: column.left || column.head ? "left" : null },
    element("button", { type: "button", title: column.hint }, joined(column.title))));
  const sort = (n, down) => {
    const { value } = columns[n];
    const keys = trs.map((_, i) => value(i));
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    const missing = (key) => key === null || key === undefined || Number.isNaN(key) || key === "";
    const order = keys.map((_, i) => i).sort((i, j) => {
      if (missing(keys[i]) || missing(keys[j])) return missing(keys[i]) - missing(keys[j]) || i - j;
      return (down ? -1 : 1) * compare(keys[i], keys[j]) || i - j;
    });
    body.append(...order.map((i) => trs[i]));
    heads.forEach((head, m) => (m === n ? head.setAttribute("aria-sort", down ? "descending" : "ascending")
      : head.removeAttribute("aria-sort")));
  };
  heads.forEach((head, n) => head.firstChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const first = count > 0 && typeof columns[n].value(0) !== "string";
    sort(n, now ? now === "ascending" : first);
  }));
  host.replaceChildren(element("table", { "aria-label": label }, element("thead", {}, element("tr", {}, ...heads)), body));
  if (sorted === null) body.append(...trs);
  else sort(sorted, descending);
  return trs;
}

const numeric = (title, values, text, more = {}) => {
  const known = numbers(values);
  return { title, value: (i) => known[i], cell: (i) => text(known[i]), ...more };
};

/** A gain with its interval as a small drawing, all rows on one scale, which ends where nearly all of them lie. */
function intervalBar(estimate, low, high, most, color) {
  const [width, height] = [64, 14];
  const place = (value) => Math.max(3, Math.min(width - 3, (value / most + 1) * width / 2)).toFixed(1);
  if (!Number.isFinite(estimate)) return null;
  const whisker = Number.isFinite(low + high) ? `M${place(low)} 7H${place(high)}` : "";
  const dot = `M${place(estimate)} 7m-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0`;
  return element("svg", { class: "bar", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    element("svg:path", { d: whisker + dot, stroke: color, fill: color }));
}

const VERDICTS = { gains: ["▲ gains", "gains"], loses: ["▼ loses", "loses"], "no evidence": ["no evidence", "open"] };

function gainColumns(end) {
  const found = DATA.gains[end];
  if (!found) return [];
  const [estimates, lows, highs] = [found.improvement, found.low, found.high].map(numbers);
  const sizes = [...lows, ...highs].filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
  const most = sizes[Math.ceil(0.98 * (sizes.length - 1))] || 0.01;
  const against = end === "independent" ? "vs τ = 0" : "vs τ = ∞";
  const columns = [
    {
      title: `Gain ${against}, %`, hint: `How far perplexity lies below ${ENDS[end]}`, value: (i) => estimates[i],
      cell: (i) => (Number.isNaN(estimates[i]) ? "–" : `${percentText(estimates[i])} [${percentText(lows[i])}, ${
        percentText(highs[i])}]`),
    },
    {
      title: "", value: (i) => estimates[i],
      cell: (i) => intervalBar(estimates[i], lows[i], highs[i], most, `var(--${end})`),
    },
  ];
  if (found.verdict) {
    columns.push({
      title: `Verdict ${against}`, left: true, value: (i) => found.verdict[i],
      cell: (i) => {
        const [text, style] = VERDICTS[found.verdict[i]] ?? [found.verdict[i], "open"];
        return element("span", { class: style, title: `p (Holm) ${pText(number(found.adjusted_p[i]))}` }, text);
      },
    });
  }
  return columns;
}

function drawTasks() {
  const perplexity = (name, title) => (TASKS.perplexity[name]
    ? [numeric(title, TASKS.perplexity[name], perplexityText)] : []);
  const best = number(DATA.best_tau);
  const buttons = NAMES.map((name, d) => named(name, "button", { type: "button", class: "name", "aria-pressed": "false",
    dir: "auto" }));
  const columns = [
    { title: "Task", head: true, value: (d) => shown(NAMES[d]), cell: (d) => buttons[d] },
    numeric("Documents", TASKS.documents.train, amountText),
    ...(best === 0 ? [] : perplexity("independent", "τ = 0")),
    perplexity("best", `τ = ${tauText(best)}`)[0],
    ...(best === Infinity ? [] : perplexity("shared", "τ = ∞")),
    ...(TASKS.floor.some((value) => value !== null) ? [numeric("Floor", TASKS.floor, perplexityText)] : []),
    ...gainColumns("independent"), ...gainColumns("shared"),
    ...(TASKS.distance && TASKS.distance.some((value) => value !== null)
      ? [numeric("Distance", TASKS.distance, threeText)] : []),
  ];
  const trs = makeTable(at("task-table"), "Tasks", columns, NAMES.length, { sorted: 1, descending: true });
  trs.forEach((tr, d) => {
    buttons[d].addEventListener("click", () => tasks.toggle(d));
    buttons[d].addEventListener("focus", () => tasks.look(d));
    buttons[d].addEventListener("blur", () => tasks.look(null));
    tr.addEventListener("pointerenter", () => tasks.look(d));
    tr.addEventListener("pointerleave", () => tasks.look(null));
  });
  let looked = null;
  tasks.listeners.push(() => {
    if (looked !== null) trs[looked].classList.remove("focus");
    looked = tasks.focus;
    if (looked !== null) trs[looked].classList.add("focus");
    buttons.forEach((button, d) => button.setAttribute("aria-pressed", String(tasks.kept.includes(d))));
  });
  finding(trs);
}

/** The search by name, in any case and script, and the filter by verdict. */
function finding(trs) {
  const folded = NAMES.map((name) => name.normalize("NFKC").toLocaleLowerCase());
  const options = [["", "all tasks"], ["kept", "kept tasks"]];
  for (const [end, words] of Object.entries(ENDS)) {
    for (const verdict of DATA.gains[end]?.verdict ? Object.keys(VERDICTS) : []) {
      options.push([`${end}/${verdict}`, `${verdict}, against ${words}`]);
    }
  }
  at("filter").append(...options.map(([value, text]) => element("option", { value }, text)));
  const passes = (d) => {
    const [end, verdict] = at("filter").value.split("/");
    if (end === "kept") return tasks.kept.includes(d);
    return !end || DATA.gains[end].verdict[d] === verdict;
  };
  const find = () => {
    const wanted = at("search").value.normalize("NFKC").toLocaleLowerCase().trim();
    let found = 0;
    trs.forEach((tr, d) => {
      tr.hidden = !(folded[d].includes(wanted) && passes(d));
      found += !tr.hidden;
    });
    at("found").textContent = `${fixed(found, 0)} of ${counted(trs.length, "task")}`;
  };
  at("search").addEventListener("input", find);
  at("filter").addEventListener("change", find);
  tasks.listeners.push(() => at("filter").value === "kept" && find());
  find();
}

/** The tasks kept, each a button that lets it go. */
function drawKept() {
  const show = () => {
    const chips = tasks.kept.map((d) => {
      const chip = element("button", { type: "button", "aria-label": `Let go of ${shown(NAMES[d])}` },
        named(NAMES[d]), element("span", { "aria-hidden": "true" }, "×"));
      chip.addEventListener("click", () => tasks.toggle(d));
      return chip;
    });
    const all = element("button", { type: "button" }, "Let all go");
    all.addEventListener("click", () => tasks.clear());
    at("kept").replaceChildren(...(chips.length ? ["Kept:", ...chips, ...(chips.length > 1 ? [all] : [])]
      : ["Point at a task to read it, click to keep it in every chart; or choose it in the table below."]));
  };
  let before = null;
  tasks.listeners.push(() => {
    const now = tasks.kept.join();
    if (now !== before) show();
    before = now;
  });
  show();
}

function drawTaus() {
  const table = DATA.taus;
  const of = (name) => numbers(table[name]);
  const range = (values) => {
    const known = numbers(values);
    if (known.some(Number.isNaN)) return "–";
    const [low, high] = [Math.min(...known), Math.max(...known)];
    return low === high ? `${low}` : `${low}–${high}`;
  };
  const [difference, low, high] = ["", "_low", "_high"].map((end) => of(`relative_difference_to_best${end}`));
  const level = (name, title) => {
    const [estimate, from, to] = ["", "_low", "_high"].map((end) => of(`${name}${end}`));
    return { title, value: (i) => estimate[i], cell: (i) => levelText(estimate[i], from[i], to[i]) };
  };
  const isFit = (i) => table.method[i] === "map";
  const columns = [
    { title: "τ", head: true, value: (i) => (isFit(i) ? number(table.tau[i]) : -1),
      cell: (i) => (isFit(i) ? tauText(number(table.tau[i])) : "zero-shot") + (table.one_standard_error[i]
        && !table.best[i] ? " (one standard error)" : "") },
    { title: "Learning rate", value: (i) => of("learning_rate")[i],
      cell: (i) => (isFit(i) ? short(number(table.learning_rate[i])) : "") },
    { title: "Seeds", value: (i) => table.seeds[i], cell: (i) => (isFit(i) ? `${table.seeds[i]}` : "") },
    { title: "Epochs (best)", value: (i) => Math.max(...numbers(table.epochs[i])),
      cell: (i) => (isFit(i) ? `${range(table.epochs[i])} (${range(table.best_epochs[i])})` : "") },
    level("validation_perplexity", "Validation"), level("test_perplexity", "Test"),
    level("test_macro_perplexity", "Test, macro"),
    { title: "Test vs best", value: (i) => difference[i],
      cell: (i) => (table.best[i] ? "best" : intervalText(difference[i], low[i], high[i])) },
  ];
  const host = at("each-tau");
  makeTable(host.querySelector(".scroll"), "Every τ", columns, table.tau.length, {
    sorted: 0, row: (i) => (table.best[i] ? { class: "chosen" } : {}),
  });
  paragraphs(host.querySelector(".caption"), DATA.words.table_1);
}

function drawMethods() {
  const table = DATA.methods;
  if (!table) return;
  at("methods").hidden = false;
  const of = (name) => numbers(table[name]);
  const [test, low, high] = [of("test_perplexity"), of("test_low"), of("test_high")];
  const [difference, a, b] = [of("relative_difference_to_reference"), of("low"), of("high")];
  const lowest = of("validation_perplexity").reduce((best, v, i, all) => (v < all[best] ? i : best), 0);
  const columns = [
    { title: "Method", head: true, value: (i) => table.name[i], cell: (i) => table.name[i] },
    numeric("Seeds", table.seeds, amountText), numeric("Validation", table.validation_perplexity, perplexityText),
    { title: "Test [95%]", value: (i) => test[i],
      cell: (i) => levelText(test[i], low[i], high[i]) },
    { title: "Test vs the reference", value: (i) => difference[i],
      cell: (i) => (table.is_reference[i] ? "0" : intervalText(difference[i], a[i], b[i])) },
    numeric("Tokens", table.train_tokens, amountText), numeric("of the search", table.search_train_tokens, amountText),
    numeric("Seconds", table.train_seconds, amountText), numeric("of the search", table.search_train_seconds, amountText),
  ];
  makeTable(at("methods").querySelector(".scroll"), "Methods compared", columns, table.name.length, {
    sorted: 3, row: (i) => (i === lowest ? { class: "chosen" } : {}),
  });
  paragraphs(at("methods").querySelector(".caption"), DATA.words.methods);
}

function drawTrials() {
  const table = DATA.trials;
  const some = (name) => table[name].some((value) => value !== null && value !== "" && value !== 0);
  const plainly = (title, name, more = {}) => ({ title, value: (i) => table[name][i] ?? "",
    cell: (i) => table[name][i] ?? "–", ...more });
  const several = new Set(table.run).size > 1;
  const buttons = table.trial_id.map((id) => named(id, "button", { type: "button", class: "name",
    "aria-pressed": "false" }));
  const columns = [
    { title: "Trial", head: true, value: (i) => table.trial_id[i], cell: (i) => buttons[i] },
    ...(several ? [plainly("Run", "run", { left: true })] : []),
    { title: "State", left: true, value: (i) => table.status[i],
      cell: (i) => element("span", { class: `state ${/^[a-z]+$/.test(table.status[i]) ? table.status[i] : ""}` },
        table.status[i]) },
    { title: "τ, or method", value: (i) => number(table.tau[i]), cell: (i) => table.fit[i] },
    numeric("Seed", table.seed, String),
    { title: "Epochs (best)", value: (i) => number(table.epochs[i]),
      cell: (i) => (table.epochs[i] === null ? "–" : `${table.epochs[i]} (${table.best_epoch[i] ?? "–"})`) },
    plainly("Ended by", "stopped_by", { left: true }),
    numeric("Validation", table.validation_perplexity, perplexityText),
    numeric("Test", table.test_perplexity, perplexityText),
    numeric("Tokens", table.train_tokens, amountText), numeric("Tokens/s", table.tokens_per_second, amountText),
    numeric("Seconds", table.train_seconds, amountText),
    ...(some("gpu_hours") ? [numeric("GPU time", table.gpu_hours, hoursText)] : []),
    numeric("CPU time", table.cpu_hours, hoursText),
    { title: "Memory", value: (i) => number(table.peak_memory_bytes[i]), cell: (i) => (table.peak_memory_bytes[i] === null
      ? "–" : `${fixed(table.peak_memory_bytes[i] / 2 ** 20, 0)} MiB`) },
    ...(some("reported_perplexity") ? [numeric("By the protocol", table.reported_perplexity, perplexityText),
      plainly("which is", "reported_as", { left: true })] : []),
    ...(some("error") ? [plainly("Error", "error", { why: true, cell: (i) => table.error[i] ?? "" })] : []),
    ...(some("notes") ? [plainly("Notes", "notes", { why: true, cell: (i) => table.notes[i] ?? "" })] : []),
  ];
  const trs = makeTable(at("trial-table"), "Trials", columns, table.trial_id.length, { sorted: 0 });
  trs.forEach((tr, i) => {
    buttons[i].addEventListener("click", () => trials.toggle(i));
    tr.addEventListener("pointerenter", () => trials.look(i));
    tr.addEventListener("pointerleave", () => trials.look(null));
  });
  trials.listeners.push(() => trs.forEach((tr, i) => {
    tr.classList.toggle("focus", trials.focus === i);
    buttons[i].setAttribute("aria-pressed", String(trials.kept.includes(i)));
  }));
  paragraphs(at("cost"), DATA.words.cost);
  paragraphs(at("trial-caption"), DATA.words.trials);
}
