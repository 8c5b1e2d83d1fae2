"use strict";
// The page's data, and elements made of it. Text from the data becomes text nodes, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const HTML = "http://www.w3.org/1999/xhtml";
const SVG = "http://www.w3.org/2000/svg";

/** The place in the page. */
const at = (id) => document.getElementById(id);

/** JSON has neither NaN (null) nor infinity ("Infinity"). */
const number = (value) => (value === null || value === undefined ? NaN : Number(value));
const numbers = (values) => (values ?? []).map(number);

/** An element with attributes and children; strings become text nodes. */
function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(name.startsWith("svg") ? SVG : HTML, name.replace("svg:", ""));
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A name: the style sheet cuts it, its title has all of it. */
const nameElement = (name, tag = "bdi", attributes = {}) => element(tag, { title: name, ...attributes }, name);

/** A name in a chart, kept apart from the direction of the text around it. */
const isolated = (name) => `\u2068${name}\u2069`;

/** No line ends within `τ = 100`. */
const unbroken = (text) => text.replace(/τ = (?=[\d∞])/g, "τ\u00a0=\u00a0");

/** Paragraphs of [style, text] runs. */
function paragraphs(host, words = [], attributes = {}) {
  for (const runs of words) {
    host.append(element("p", attributes, ...runs.map(([style, run]) => {
      const text = unbroken(run);
      if (["strong", "em", "code", "sup"].includes(style)) return element(style, {}, text);
      return /^tables\/[\w.]+$/.test(style) ? element("a", { href: style }, text) : text;
    })));
  }
}

/** What a screen reader reads out. */
function announce(text) {
  at("announced").textContent = text;
}

/** What is read of a row of a table: its name, and lines of text and of the row's cells, maybe a chart's own. */
function tipOf(table, row, more = [], own = null) {
  const { texts } = DATA.tables[table];
  const { name, lines: usual } = DATA.tips[table];
  const lines = own ?? usual;
  const line = (parts) => parts.map((part) => (part.of ? texts[part.of][row] : part)).join("");
  return [texts[name][row], ...[...lines, ...more].map(line)];
}

/** Which rows of a table are looked at (one) and kept (several); tells those who draw them. */
class Selection {
  constructor() {
    [this.focus, this.kept, this.listeners] = [null, [], new Map()];
  }
  /** A listener of a name replaces the one before it. */
  listen(name, listener) {
    this.listeners.set(name, listener);
    listener();
  }
  look(row) {
    if (row === this.focus) return;
    this.focus = row;
    this.notify();
  }
  toggle(row) {
    this.kept = this.kept.includes(row) ? this.kept.filter((other) => other !== row) : [...this.kept, row];
    this.notify();
  }
  clear() {
    this.kept = [];
    this.notify();
  }
  notify() {
    for (const listener of this.listeners.values()) listener();
  }
}
const tasks = new Selection();
const trials = new Selection();
