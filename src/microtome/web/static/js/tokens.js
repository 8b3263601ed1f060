// Tokens on the page. What would steer the page or the eye (control characters, direction overrides, ANSI escapes) is spelt
// out; spaces and line ends get a mark. Text is never parsed.

import { h, showTip, hideTip } from "./dom.js";
import { number } from "./format.js";

const NAMED = {
  0x00ad: "SHY", 0x061c: "ALM", 0x200b: "ZWSP", 0x200e: "LRM", 0x200f: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202a: "LRE", 0x202b: "RLE",
  0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI",
  0xfeff: "BOM",
};

const C0 = "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

function symbol(code) {
  if (code === 0x0a) return "\u21b5";
  if (code === 0x09) return "\u21e5";
  if (code < 0x20) return C0[code];
  if (code === 0x7f) return "DEL";
  if (code >= 0x80 && code < 0xa0) return `U+00${code.toString(16).toUpperCase()}`;
  return NAMED[code] || null;
}

// The text as nodes, with control characters as small marked symbols.
export function spell(text) {
  const nodes = [];
  let plain = "";
  for (const letter of text) {
    const mark = symbol(letter.codePointAt(0));
    if (mark === null) { plain += letter; continue; }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(h("span", { class: "control" }, mark));
  }
  if (plain) nodes.push(plain);
  return nodes;
}

// A token standing alone: its leading and trailing spaces are shown as faint dots.
export function chip(text, attributes = {}) {
  const inner = text.trim() === "" && !/[\n\t\r]/.test(text) ? "" : text.replace(/^ +| +$/g, "");
  const before = inner === "" ? text.length : text.length - text.trimStart().length - (text.match(/^\s*/)[0].match(/[^ ]/g) || []).length;
  const after = inner === "" ? 0 : text.match(/ *$/)[0].length;
  const dots = (n) => (n > 0 ? h("span", { class: "space", "aria-hidden": "true" }, "\u00b7".repeat(Math.min(n, 8))) : null);
  return h("bdi", { class: "chip", ...attributes }, dots(before), spell(inner), dots(after));
}

// A context: its tokens coloured by activation on a scale that goes to `limit` both ways; the extreme token is framed.
export function contextLine(context, limit) {
  const line = h("p", { class: "context", dir: "auto" });
  context.pieces.forEach((piece, j) => {
    const value = context.codes[j] * (context.scale ?? 0);
    const weight = limit > 0 ? Math.min(1, Math.abs(value) / limit) : 0;
    const kind = value < 0 ? "minus" : "plus";
    const space = /^ +/.exec(piece)?.[0] ?? "";
    const word = piece.slice(space.length);
    const span = h("span", { class: `token ${kind}${j === context.centre ? " centre" : ""}`, vars: { "--w": weight.toFixed(3) } }, spell(word || space));
    span.dataset.value = String(value);
    if (word && space && j > 0) line.append(space);
    line.append(span);
  });
  const say = (event) => {
    const span = event.target.closest(".token");
    if (!span) return hideTip();
    showTip(event.clientX, event.clientY, h("span", { class: "tipvalue" }, number(Number(span.dataset.value))), " ", h("span", { class: "soft" }, "activation"));
  };
  line.addEventListener("pointermove", say);
  line.addEventListener("pointerdown", say);
  line.addEventListener("pointerleave", hideTip);
  return line;
}
