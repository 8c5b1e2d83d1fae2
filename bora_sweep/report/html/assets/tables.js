// Tables that sort by their headings; the tasks' one is also searched and filtered.

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

/** The order of rows by keys: what is not known is last. */
function orderOf(keys, descending) {
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const missing = (key) => key === "" || Number.isNaN(key);
  return keys.map((_, i) => i).sort((i, j) => {
    if (missing(keys[i]) || missing(keys[j])) return missing(keys[i]) - missing(keys[j]) || i - j;
    return (descending ? -1 : 1) * compare(keys[i], keys[j]) || i - j;
  });
}

/** Draw a table into a host; its names select rows where there is a selection. Returns the rows in the data's order. */
function drawTable(host, table, selection = null) {
  const columns = table.columns.filter(({ kind }) => kind !== "hidden");
  const names = ["name", "head", "text", "state", "verdict", "long"];
  const trs = table.texts[columns[0].name].map((_, i) => element("tr", { class: table.bold.includes(i) ? "chosen" : null },
    ...columns.map((column) => cellOf(table, column, i))));
  const heads = columns.map(({ title, hint, kind }) => element("th", { scope: "col", class: names.includes(kind) ? "left"
    : null }, element("button", { type: "button", title: hint }, unbroken(title))));
  const body = element("tbody");
  const keysOf = ({ name, of }) => (table.values[of ?? name] ? numbers(table.values[of ?? name]) : table.texts[name]);
  const sort = (n, descending) => {
    body.append(...orderOf(keysOf(columns[n]), descending).map((i) => trs[i]));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[n].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  heads.forEach((head, n) => head.firstChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort"); // at the first click words ascend, and numbers descend
    sort(n, now ? now === "ascending" : typeof keysOf(columns[n])[0] === "number");
  }));
  host.replaceChildren(element("table", { "aria-label": table.label }, element("thead", {},
    element("tr", {}, ...heads)), body));
  if (table.sorted === null) body.append(...trs);
  else sort(columns.findIndex(({ name }) => name === table.sorted), table.descending);
  if (selection) selectRows(host.id, trs, selection);
  return trs;
}

/** Rows are looked at by the pointer or the keyboard, and kept by their buttons. */
function selectRows(name, trs, selection) {
  const buttons = trs.map((tr) => tr.querySelector("button"));
  trs.forEach((tr, i) => {
    buttons[i].addEventListener("click", () => selection.toggle(i));
    for (const event of ["focus", "blur"]) {
      buttons[i].addEventListener(event, () => selection.look(event === "focus" ? i : null));
    }
    tr.addEventListener("pointerenter", () => selection.look(i));
    tr.addEventListener("pointerleave", () => selection.look(null));
  });
  let [focus, kept] = [null, []];
  selection.listen(name, () => {
    trs[focus]?.classList.remove("focus");
    trs[selection.focus]?.classList.add("focus");
    for (const i of new Set([...kept, ...selection.kept])) {
      buttons[i].setAttribute("aria-pressed", String(selection.kept.includes(i)));
    }
    [focus, kept] = [selection.focus, selection.kept];
  });
}

/** The search by name, in any case and script, and the filter by verdict. */
function searchTasks(trs) {
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
    let count = 0; // the one number that only the reader's search makes
    trs.forEach((tr, d) => {
      tr.hidden = !(folded[d].includes(wanted) && passes(d));
      count += !tr.hidden;
    });
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
