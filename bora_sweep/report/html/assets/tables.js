// Tables that sort by their headings; the tasks' one is also searched and filtered.

const [MOST_ROWS, WINDOW] = [200, 100];

/** A gain with its interval as a small drawing; all rows share one scale, which ends at `limit`. */
function intervalBar([estimate, low, high], limit, color) {
  const [width, height] = [64, 14];
  const place = (value) => Math.max(3, Math.min(width - 3, (value / limit + 1) * width / 2));
  if (!Number.isFinite(estimate)) return null;
  const whisker = Number.isFinite(low + high) ? `M${place(low)} 7H${place(high)}` : "";
  const dot = `M${place(estimate)} 7m-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0`;
  return element("svg", { class: "bar", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    element("svg:path", { d: whisker + dot, stroke: colorOf(color), fill: colorOf(color) }));
}

/** The cell of a row, by the kind of its column. */
function cellOf({ values, texts: all }, column, i) {
  const text = all[column.name]?.[i];
  switch (column.kind) {
    case "name":
      return element("th", { scope: "row" }, nameElement(text, "button", { type: "button", class: "name",
        "aria-pressed": "false", dir: "auto" }));
    case "head": return element("th", { scope: "row" }, text);
    case "text": return element("td", { class: "left" }, text);
    case "long": return element("td", { class: "why" }, text);
    case "state":
      return element("td", { class: "left" }, element("span", { class: `state ${/^[a-z]+$/.test(text) ? text : ""}` },
        text));
    case "verdict":
      return element("td", { class: "left" }, element("span", { class: column.styles[text],
        title: `${column.hinted} ${all[column.hints][i]}` }, text));
    case "interval":
      return element("td", {}, intervalBar(["", "_low", "_high"].map((end) => number(values[column.of + end][i])),
        column.limit, column.color));
    default: return element("td", {}, text);
  }
}

const BY_NAME = new Intl.Collator("en", { numeric: true });

/** The order of rows by keys: what is not known is last. */
function orderOf(keys, descending) {
  const compare = (a, b) => (typeof a === "string" ? BY_NAME.compare(a, b) : a - b);
  const missing = (key) => key === "" || Number.isNaN(key);
  return keys.map((_, i) => i).sort((i, j) => {
    if (missing(keys[i]) || missing(keys[j])) return missing(keys[i]) - missing(keys[j]) || i - j;
    return (descending ? -1 : 1) * compare(keys[i], keys[j]) || i - j;
  });
}

/**
 * Draw a table into a host; its names select rows where there is a selection. Of a table with more than `MOST_ROWS` a
 * window of `WINDOW` rows is shown, with buttons for the others. Returns a function that shows the rows that pass.
 */
function drawTable(host, table, selection = null) {
  const columns = table.columns.filter(({ kind }) => kind !== "hidden");
  const names = ["name", "head", "text", "state", "verdict", "long"];
  const count = table.texts[columns[0].name].length;
  const size = count > MOST_ROWS ? WINDOW : count;
  const bold = new Set(table.bold);
  const trs = new Map(); // made when they are first shown
  const rowOf = (i) => {
    if (!trs.has(i)) {
      trs.set(i, element("tr", { class: bold.has(i) ? "chosen" : null }, ...columns.map((column) => cellOf(table, column,
        i))));
      if (selection) selectRow(trs.get(i), i, selection);
    }
    return trs.get(i);
  };
  const heads = columns.map(({ title, hint, kind }) => element("th", { scope: "col", class: names.includes(kind) ? "left"
    : null }, element("button", { type: "button", title: hint }, unbroken(title))));
  const body = element("tbody");
  const keysOf = ({ name, of }) => (table.values[of ?? name] ? numbers(table.values[of ?? name]) : table.texts[name]);
  let [order, passes, first, shown] = [Array.from({ length: count }, (_, i) => i), () => true, 0, []];
  const pager = pagerOf((step) => {
    first += step * size;
    show();
  });
  const show = () => {
    shown = order.filter(passes);
    body.replaceChildren(...shown.slice(first, first + size).map(rowOf));
    pager.update(first, size, shown.length);
    return shown.length;
  };
  const sort = (n, descending) => {
    [order, first] = [orderOf(keysOf(columns[n]), descending), 0];
    show();
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[n].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  heads.forEach((head, n) => head.firstChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort"); // at the first click words ascend, and numbers descend
    sort(n, now ? now === "ascending" : typeof keysOf(columns[n])[0] === "number");
  }));
  host.replaceChildren(element("table", { "aria-label": table.label }, element("thead", {},
    element("tr", {}, ...heads)), body));
  if (size < count) host.after(pager.element);
  if (table.sorted === null) show();
  else sort(columns.findIndex(({ name }) => name === table.sorted), table.descending);
  if (selection) markRows(host.id, trs, selection);
  return (passing) => {
    [passes, first] = [passing, 0];
    return show();
  };
}

/** Buttons that go from window to window of a long table, and which rows are seen. */
function pagerOf(turn) {
  const button = (text, step) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", () => turn(step));
    return made;
  };
  const [back, on, where] = [button("Back", -1), button("More", 1), element("output")];
  return {
    element: element("div", { class: "pager" }, back, on, where),
    update: (first, size, count) => {
      [back.disabled, on.disabled] = [first === 0, first + size >= count];
      const [from, to] = [Math.min(first + 1, count), Math.min(first + size, count)];
      where.textContent = `rows ${[from, to].map((row) => row.toLocaleString("en")).join(" to ")}`;
    },
  };
}

/** A row is looked at by the pointer or the keyboard, and kept by its button. */
function selectRow(tr, i, selection) {
  const button = tr.querySelector("button");
  button.addEventListener("click", () => selection.toggle(i));
  for (const event of ["focus", "blur"]) {
    button.addEventListener(event, () => selection.look(event === "focus" ? i : null));
  }
  tr.addEventListener("pointerenter", () => selection.look(i));
  tr.addEventListener("pointerleave", () => selection.look(null));
  button.setAttribute("aria-pressed", String(selection.kept.includes(i)));
  tr.classList.toggle("focus", selection.focus === i);
}

/** Mark the rows that are looked at and kept elsewhere; a row that is made later begins with its mark. */
function markRows(name, trs, selection) {
  let [focus, kept] = [null, []];
  selection.listen(name, () => {
    trs.get(focus)?.classList.remove("focus");
    trs.get(selection.focus)?.classList.add("focus");
    for (const i of new Set([...kept, ...selection.kept])) {
      trs.get(i)?.querySelector("button").setAttribute("aria-pressed", String(selection.kept.includes(i)));
    }
    [focus, kept] = [selection.focus, selection.kept];
  });
}

/** The search by name, in any case and script, and the filter by verdict. */
function searchTasks(showRows) {
  const fold = (text) => text.normalize("NFKC").toLocaleLowerCase();
  const folded = NAMES.map(fold);
  const filters = new Map(DATA.filters.map((filter) => [filter.value, filter]));
  const options = [["", "all tasks"], ["kept", "kept tasks"], ...DATA.filters.map(({ value, text }) => [value, text])];
  at("filter").append(...options.map(([value, text]) => element("option", { value }, text)));
  const passes = (d) => {
    const filter = filters.get(at("filter").value);
    if (filter) return TASKS.texts[filter.column][d] === filter.equals;
    return at("filter").value === "" || tasks.kept.includes(d);
  };
  const search = () => {
    const wanted = fold(at("search").value).trim();
    const count = showRows((d) => folded[d].includes(wanted) && passes(d)); // the reader's search alone makes it
    at("found").textContent = `${count.toLocaleString("en")} of ${DATA.num_tasks}`;
  };
  at("search").addEventListener("input", search);
  at("filter").addEventListener("change", search);
  tasks.listen("filter", () => at("filter").value === "kept" && search());
  search();
}

/** The tasks kept, each a button that lets it go. */
function drawKept() {
  let before = null;
  tasks.listen("kept", () => {
    if (tasks.kept === before) return;
    before = tasks.kept;
    const chips = before.map((d) => {
      const chip = element("button", { type: "button", "aria-label": `Let go of ${NAMES[d]}` },
        nameElement(NAMES[d]), element("span", { "aria-hidden": "true" }, "×"));
      chip.addEventListener("click", () => tasks.toggle(d));
      return chip;
    });
    const all = element("button", { type: "button" }, "Let all go");
    all.addEventListener("click", () => tasks.clear());
    at("kept").replaceChildren(...(chips.length ? ["Kept:", ...chips, ...(chips.length > 1 ? [all] : [])]
      : ["Point at a task to read it, click to keep it in every chart; or choose it in the table below."]));
  });
}
