// Who is like whom: the groups of tasks in words and a table, and the map of similarities.

/** Blue where two tasks are alike, vermilion where they are opposite, faint where they have nothing in common. */
function drawAlikeMap(host, { tasks: names, groups, similarity, texts, label }) {
  const size = names.length, side = 8;
  const cell = (row, column) => {
    const value = similarity[row][column];
    return element("svg:rect", { x: column * side, y: row * side, width: side, height: side,
      fill: colorOf(value < 0 ? "shared" : "independent"), "fill-opacity": row === column ? 0 : Math.abs(value) });
  };
  const all = names.flatMap((_, row) => names.map((_, column) => cell(row, column)));
  const borders = groups.flatMap((group, n) => (n && group !== groups[n - 1] ? [n * side] : []));
  const line = (attributes) => element("svg:line", { ...attributes, stroke: "var(--ink)", "stroke-width": 0.6 });
  const whole = size * side;
  host.append(element("svg", { viewBox: `0 0 ${whole} ${whole}`, "aria-hidden": "true" }, ...all,
    ...borders.flatMap((at) => [line({ x1: 0, x2: whole, y1: at, y2: at }), line({ x1: at, x2: at, y1: 0, y2: whole })])));
  host.classList.add("map");
  for (const [name, value] of Object.entries({ tabindex: 0, role: "img", "aria-label": label })) {
    host.setAttribute(name, value);
  }
  const read = at("alike-read"), ask = read.textContent;
  host.addEventListener("pointermove", ({ clientX, clientY }) => {
    const box = host.firstChild.getBoundingClientRect();
    const [column, row] = [clientX - box.left, clientY - box.top].map((place) => Math.floor(place / box.width * size));
    const text = texts[row]?.[column];
    read.textContent = text === undefined || row === column ? ask
      : `${isolated(names[row])} and ${isolated(names[column])}: ${text}`;
  });
  host.addEventListener("pointerleave", () => { read.textContent = ask; });
}

/** The section stays hidden where the run was not asked. */
function drawAlike() {
  const { alike, alike_about: about } = DATA.words;
  at("alike").hidden = at("alike-link").hidden = !alike;
  if (!alike) return;
  paragraphs(at("alike-words"), alike);
  paragraphs(at("alike-caption"), about);
  if (DATA.tables.groups) drawTable(at("alike-table"), DATA.tables.groups);
  if (DATA.charts.alike) drawAlikeMap(at("alike-map"), DATA.charts.alike);
}
