"use strict";
// Words and numbers: as the report's Python writes them, and into the page as text alone, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const HTML = "http://www.w3.org/1999/xhtml";
const SVG = "http://www.w3.org/2000/svg";

/** The place in the page. */
const at = (id) => document.getElementById(id);

/** JSON has neither NaN (null) nor infinity ("Infinity"). */
const number = (value) => (value === null || value === undefined ? NaN : Number(value));
const numbers = (values) => values.map(number);

/** An element with attributes and children; strings become text nodes. */
function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(name === "svg" || name.startsWith("svg:") ? SVG : HTML, name.replace("svg:", ""));
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Three digits in the way of Python's `:.3g`. */
function short(value) {
  const rounded = Number(value.toPrecision(3));
  const size = Math.abs(rounded);
  if (rounded !== 0 && (size < 1e-4 || size >= 1e3)) {
    return rounded.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
  }
  return String(rounded);
}

/** With thousands set off, and a half rounded to the even whole as Python rounds it. */
function fixed(value, digits) {
  const even = digits === 0 && Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : value;
  const [whole, part] = even.toFixed(digits).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (part ? `.${part}` : "");
}

function tauText(tau) {
  if (Number.isNaN(tau)) return "–";
  if (tau === Infinity) return "∞";
  const rounded = Number(tau.toPrecision(3));
  return rounded >= 1000 ? fixed(rounded, 0) : short(rounded);
}

function perplexityText(value) {
  if (Number.isNaN(value)) return "–";
  if (value === Infinity) return "∞";
  if (value >= 1e6) return short(value);
  return fixed(value, value < 100 ? 2 : value < 1000 ? 1 : 0);
}

/** A count or an amount. */
function amountText(value) {
  if (Number.isNaN(value)) return "–";
  return fixed(value, Number.isInteger(value) || value >= 100 ? 0 : 1);
}

/** Hours, and fewer than two of them in minutes or seconds. */
function hoursText(hours) {
  if (Number.isNaN(hours)) return "–";
  const [value, unit] = hours < 1 / 60 ? [hours * 3600, "s"] : hours < 2 ? [hours * 60, "min"] : [hours, "h"];
  return `${fixed(value, value < 10 ? 1 : 0)} ${unit}`;
}

function percentText(value, signed = true) {
  if (Number.isNaN(value)) return "–";
  const text = fixed(Math.abs(100 * value), 1);
  return `${value < 0 || Object.is(value, -0) ? "−" : signed ? "+" : ""}${text}`;
}

/** `+1.2% [+0.3, +2.1]` */
const intervalText = (estimate, low, high) =>
  `${percentText(estimate)}% [${percentText(low)}, ${percentText(high)}]`;

/** Three digits, no more and no fewer. */
const threeText = (value) => (Number.isNaN(value) ? "–" : value >= 1000 ? fixed(value, 0) : value.toPrecision(3));

const pText = (p) => (p < 1e-4 ? "< 0.0001" : String(Number(p.toPrecision(2))));

/** `11.08 [10.75, 11.41]` */
const levelText = (estimate, low, high) => `${perplexityText(estimate)} [${perplexityText(low)}, ${perplexityText(high)}]`;

const counted = (n, noun) => `${fixed(n, 0)} ${noun}${n === 1 ? "" : "s"}`;

/** A name from the data with what cannot be seen made visible: control characters and those that turn the script. */
function shown(name) {
  const seen = name
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
      (c) => `‹U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}›`);
  return seen.trim() === "" ? "␠".repeat(Math.max(1, Math.min(seen.length, 8))) : seen;
}

/** The same cut to what a chart has room for, kept apart from the direction of the text around it. */
function inChart(name, limit = 26) {
  const letters = Array.from(shown(name));
  return `\u2068${letters.length > limit ? `${letters.slice(0, limit - 1).join("")}…` : letters.join("")}\u2069`;
}

/** A name in running text or in a table: cut by the style sheet, whole in its title. */
const named = (name, tag = "bdi", attributes = {}) => element(tag, { title: shown(name), ...attributes }, shown(name));

/** No line ends within `τ = 100`. */
const joined = (text) => text.replace(/τ = (?=[\d∞])/g, "τ\u00a0=\u00a0");

/** Paragraphs of [style, text] runs. */
function paragraphs(host, words, tag = "p", attributes = {}) {
  for (const runs of words) {
    host.append(element(tag, attributes, ...runs.map(([style, said]) => {
      const text = joined(said);
      if (["strong", "em", "sup"].includes(style)) return element(style, {}, text);
      return /^tables\/[\w.]+$/.test(style) ? element("a", { href: style }, text) : text;
    })));
  }
}

/** What a screen reader says. */
function say(text) {
  at("said").textContent = text;
}
