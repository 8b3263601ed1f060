// One unit: what it fires on, what it writes, its statistics beside their controls, and its neighbours.

import { h, append, clear, empty, problem } from "./dom.js";
import { capital, count, inWords, number, plural, qvalue } from "./format.js";
import { against, bar } from "./glyphs.js";
import { amend, go, href, unitHref } from "./router.js";
import { chip, contextLine, spell } from "./tokens.js";
import { sentence } from "./view_findings.js";

const FIRST = 8;
const LINKS = 12;
const ENDS = { top: "Highest", bottom: "Lowest", deciles: "Across the range", saliency: "Owed to" };

export async function render({ source, summary, rest, params, el, signal }) {
  const unit = await source.unit(rest, signal);
  document.title = `${unit.unit} \u00b7 microtome`;
  el.append(head(unit, params));
  for (const each of unit.problems) el.append(problem(each));
  if (unit.findings.length) {
    el.append(h("ul", { class: "unitfindings" }, unit.findings.map((each) => h("li", {}, h("bdi", {}, spell(sentence(each.sentence))), each.q === null ? null : h("span", { class: "soft" }, ` ${qvalue(each.q)}`)))));
  }
  append(el, [labels(unit), contexts(unit, params, source, summary), writes(unit), stats(unit), links(unit)]);
  keys(unit, params, signal);
}

function head(unit, params) {
  const keep = params.get("end") ? { end: params.get("end") } : {};
  const step = (text, address, label) => (address ? h("a", { class: "button", href: unitHref(address, keep), rel: label, title: `${address} (${label === "prev" ? "k or \u2190" : "j or \u2192"})` }, text) : h("span", { class: "button off" }, text));
  const copy = h("button", { class: "button", type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(unit.unit); copy.textContent = "Copied"; } catch { getSelection().selectAllChildren(address); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  const address = h("span", { class: "address" }, unit.unit);
  return h("div", { class: "unithead" },
    h("div", {}, h("h1", {}, address, " ", copy),
      h("p", { class: "lede" }, `${capital(inWords(unit))} of `, h("a", { href: href("units", "", { basis: unit.basis, layer: unit.layer ?? "" }) }, unit.name ? `${unit.basis}@${unit.name}` : unit.basis), h("span", { class: "faint" }, ` \u00b7 ${count(unit.place + 1)} of ${count(unit.of)}`))),
    h("nav", { class: "steps", "aria-label": "Neighbouring units" }, step("\u2190 Previous", unit.previous, "prev"), step("Next \u2192", unit.next, "next")));
}

function keys(unit, params, signal) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, svg, summary")) return;
    const to = { ArrowLeft: unit.previous, k: unit.previous, ArrowRight: unit.next, j: unit.next }[event.key];
    if (to) go(unitHref(to, params.get("end") ? { end: params.get("end") } : {}));
  }, { signal });
}

const SIDES = { top: "highest", bottom: "lowest" };
const NUMBERS = { role: "moment of cosines", place: "nats", question: "share of its variance", explanation: "correlation of what it predicts" };

// What the unit can be called: tests that it passed on held-out documents, each beside its control.
function labels(unit) {
  if (!unit.labels.length) return null;
  return h("section", { class: "block" }, h("h2", {}, "Called"),
    h("p", { class: "read" }, "Tests that it passed, on documents held out or by its weights. Filled: the unit; open: its control."),
    h("div", { class: "scroll" }, h("table", { class: "plain stats" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Label"), h("th", { scope: "col" }, "By"), h("th", { scope: "col", class: "num" }, "Value"), h("th", { scope: "col", class: "wide" }, ""), h("th", { scope: "col", class: "num" }, "Control"), h("th", { scope: "col", class: "num" }, "q"))),
      h("tbody", {}, unit.labels.map((each) => h("tr", {},
        h("th", { scope: "row" }, h("bdi", {}, spell(each.text))),
        h("td", { class: "soft" }, each.kind, SIDES[each.end] ? ` of its ${SIDES[each.end]} contexts` : ""),
        h("td", { class: "num", "data-label": "value", title: NUMBERS[each.kind] || "share of contexts" }, h("b", {}, number(each.value))),
        h("td", { class: "wide" }, against(each.value, each.control)),
        h("td", { class: "num soft", title: each.control_kind || null, "data-label": "control" }, number(each.control)),
        h("td", { class: "num soft", "data-label": "q" }, qvalue(each.q)?.replace("q = ", "").replace("q ", "") ?? "")))))));
}

function contexts(unit, params, source, summary) {
  const box = h("section", { class: "block" }, h("h2", {}, "Fires on"));
  if (!unit.contexts.length) return append(box, [empty(summary.tables.contexts ? `No contexts are kept for the units of ${unit.basis}.` : nothing(unit, summary))]);
  const groups = { top: unit.contexts.filter((each) => each.end === "top"), bottom: unit.contexts.filter((each) => each.end === "bottom"), deciles: unit.contexts.filter((each) => each.end.startsWith("decile")), saliency: unit.contexts.filter((each) => each.end === "saliency") };
  const there = Object.keys(ENDS).filter((end) => groups[end].length);
  const limit = Math.max(...unit.contexts.filter((each) => each.end !== "saliency").map((each) => Math.abs(each.value ?? 0)), 1e-12);
  const least = unit.contexts.some((each) => each.end !== "saliency" && each.codes.some((code) => code < 0)) ? -limit : 0;
  const list = h("div", { class: "contexts" });
  const show = (end) => {
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.end === end));
    clear(list);
    if (end === "saliency") {
      list.append(h("p", { class: "read" }, "Here colours say to which tokens the code at the framed one is owed: how much of it is lost when they are taken away, four at a time, on a scale of each line\u2019s own."),
        ...groups.saliency.map((each) => row(each, Math.max(...each.codes.map(Math.abs)) * each.scale, source)));
    } else if (end === "deciles") {
      for (let n = 9; n >= 0; n -= 1) {
        const rows = sortedByValue(groups.deciles.filter((each) => each.end === `decile${n}`), "top");
        if (rows.length) list.append(h("h3", { class: "decile" }, `${n * 10}\u2013${n * 10 + 10}\u202f% of its activations${unit.basis === "factors" ? " above 0" : ""}`), ...rows.map((each) => row(each, limit, source)));
      }
    } else {
      const sorted = sortedByValue(groups[end], end);
      const shown = params.get("more") ? sorted.length : FIRST;
      list.append(...sorted.slice(0, shown).map((each) => row(each, limit, source)));
      if (sorted.length > shown) {
        const more = h("button", { class: "more", type: "button", onclick: () => { more.replaceWith(...sorted.slice(shown).map((each) => row(each, limit, source))); amend({ more: 1 }); } }, `Show ${sorted.length - shown} more`);
        list.append(more);
      }
    }
  };
  const tabs = h("div", { class: "subtabs", role: "tablist" }, there.map((end) => {
    const tab = h("button", { type: "button", role: "tab", onclick: () => { amend({ end: end === there[0] ? "" : end }); show(end); } }, ENDS[end], " ", h("span", { class: "soft" }, groups[end].length));
    tab.dataset.end = end;
    return tab;
  }));
  append(box, [
    h("p", { class: "read" }, `Each line is a stretch of text, coloured by the unit\u2019s activation at every token${unit.basis === "factors" ? ` at ${unit.contexts[0].site}` : ""} on one scale; the framed token is where it was picked. `,
      h("span", { class: "scalebar" }, h("span", {}, `${number(least, 2)}`), h("span", { class: least < 0 ? "ramp" : "ramp above", "aria-hidden": "true" }), h("span", {}, `+${number(limit, 2)}`))),
    tabs, list]);
  show(there.includes(params.get("end")) ? params.get("end") : there[0]);
  return box;
}

// Why there is no context at all in this run, and in which runs there may be some.
function nothing(unit, summary) {
  const run = summary.runs.find((each) => each.name === summary.run);
  const others = summary.runs.filter((each) => each.name !== summary.run && each.text !== null && each.complete);
  const why = run?.text === null ? "this run is of the weights alone, and read no text."
    : summary.complete ? "the table that held them cannot be read." : "this run is not complete, and they are not written yet.";
  return [`No contexts: ${why}`, others.length ? " The same unit over a text: " : null,
    others.map((each, n) => [n ? ", " : "", h("a", { href: unitHref(unit.unit, { run: each.name }) }, each.name)]), others.length ? "." : null];
}

const sortedByValue = (rows, end) => [...rows].sort((a, b) => (end === "bottom" ? a.value - b.value : b.value - a.value));

function row(context, limit, source) {
  const below = h("div", { class: "document", hidden: true });
  const open = h("button", { class: "source", type: "button", "aria-expanded": "false", onclick: () => toggle(context, source, open, below), title: "show it in its document" },
    h("bdi", {}, spell(context.name || (context.document === null ? "" : `document ${context.document}`))), context.label ? [" \u00b7 ", h("bdi", {}, spell(context.label))] : null);
  return h("article", { class: "ctxrow" },
    h("div", { class: "value" }, h("b", {}, number(context.value))),
    h("div", { class: "body" }, contextLine(context, limit), below),
    h("div", { class: "from" }, context.document === null ? null : open,
      context.half && ["confirm", "discover"].includes(context.half) ? h("span", { class: `half ${context.half}`, title: context.half === "confirm" ? "from the half of the documents that was held out: it counts" : "from the half of the documents used to choose" }, context.half === "confirm" ? "held out" : context.half) : null));
}

async function toggle(context, source, button, below) {
  below.hidden = !below.hidden;
  button.setAttribute("aria-expanded", String(!below.hidden));
  if (below.hidden || below.children.length) return;
  below.append(h("p", { class: "soft" }, "\u2026"));
  try {
    const found = await source.document(context);
    const text = h("p", { class: "doctext", dir: "auto" }, found.begin > 0 ? "\u2026 " : "", found.text.map((piece) => (piece.hit ? h("mark", {}, prose(piece.text)) : prose(piece.text))), found.finish < found.length ? " \u2026" : "");
    append(clear(below), [h("p", { class: "soft small" }, h("bdi", {}, spell(found.name || "")), found.tokens ? `, ${plural(found.tokens, "token")}` : "", `, characters ${count(found.begin)}\u2013${count(found.finish)} of ${count(found.length)}`), text]);
    const mark = text.querySelector("mark");
    if (mark) text.scrollTop = mark.offsetTop - 60;
  } catch (error) {
    append(clear(below), [problem(error)]);
  }
}

// A document keeps its line ends; everything else that is not text is spelt out.
const prose = (text) => text.split("\n").flatMap((part, n) => (n ? ["\n", ...spell(part)] : spell(part)));

function writes(unit) {
  if (!unit.promotes.length && !unit.suppresses.length) return null;
  const limit = Math.max(...[...unit.promotes, ...unit.suppresses].map((each) => Math.max(Math.abs(each.score ?? 0), Math.abs(each.control ?? 0))), 1e-12);
  const column = (title, note, tokens) => h("div", {}, h("h3", {}, title), h("p", { class: "soft small" }, note),
    h("ol", { class: "tokens" }, tokens.map((each) => h("li", {}, h("a", { class: "plainchip", href: href("units", "", { basis: unit.basis, token: each.text.trim() }), title: "other units with this token" }, chip(each.text), /\ufffd|\\x[0-9a-f]{2}|<0x[0-9A-Fa-f]{2}>/.test(each.text) ? h("span", { class: "faint small" }, ` token ${each.token}`) : null),
      bar(each.score, each.control, limit),
      h("span", { class: "num" }, number(each.score)), h("span", { class: "num soft" }, number(each.control))))));
  return h("section", { class: "block" }, h("h2", {}, "Writes"),
    h("p", { class: "read" }, "The vector the unit adds to the stream, read in the model\u2019s vocabulary. The tick on a bar, and the grey number, is what a random direction of the same length scores at the same rank."),
    h("div", { class: "two" }, column("Promotes", "made likelier when the unit is positive", unit.promotes), column("Suppresses", "made less likely when the unit is positive", unit.suppresses)));
}

function stats(unit) {
  if (!unit.stats.length) return h("section", { class: "block" }, h("h2", {}, "Statistics"), empty("No statistics of this unit are written."));
  const sites = new Set(unit.stats.map((each) => each.site).filter(Boolean));
  const where = (each) => (sites.size > 1 ? each.site : "");
  const controlled = unit.stats.filter((each) => each.control !== null), plain = unit.stats.filter((each) => each.control === null);
  controlled.sort((a, b) => (a.q ?? 2) - (b.q ?? 2) || Number(a.stat.endsWith("bottom")) - Number(b.stat.endsWith("bottom")));
  return h("section", { class: "block" }, h("h2", {}, "Statistics"),
    h("p", { class: "read" }, sites.size ? `Measured at ${[...sites].join(", ")}. ` : "", controlled.length ? "Filled: the unit; open: its control." : ""),
    controlled.length ? h("div", { class: "scroll" }, h("table", { class: "plain stats" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Against a control"), h("th", { scope: "col", class: "num" }, "Value"), h("th", { scope: "col", class: "wide" }, ""), h("th", { scope: "col", class: "num" }, "Control"), h("th", { scope: "col", class: "num" }, "q"))),
      h("tbody", {}, controlled.map((each) => h("tr", {},
        h("th", { scope: "row" }, each.label, where(each) ? h("span", { class: "soft" }, ` ${where(each)}`) : null, each.meaning ? h("div", { class: "soft small" }, each.meaning) : null),
        h("td", { class: "num", "data-label": "value" }, h("b", {}, number(each.value))),
        h("td", { class: "wide" }, against(each.value, each.control)),
        h("td", { class: "num soft", title: each.control_kind || null, "data-label": "control" }, number(each.control), each.lo !== null && each.hi !== null ? h("div", { class: "small" }, `${number(each.lo)} to ${number(each.hi)}`) : null),
        h("td", { class: "num soft", "data-label": each.q === null ? null : "q" }, qvalue(each.q)?.replace("q = ", "").replace("q ", "") ?? "")))))) : null,
    plain.length ? h("dl", { class: "statgrid" }, plain.map((each) => h("div", { title: each.meaning || null }, h("dt", {}, each.label, where(each) ? ` ${where(each)}` : ""), h("dd", {}, number(each.value))))) : null);
}

function links(unit) {
  if (!unit.links.length) return null;
  const row = (each) => h("tr", {}, h("th", { scope: "row" }, h("a", { class: "address", href: unitHref(each.other) }, each.other)), h("td", {}, each.kind.replaceAll("_", " ")), h("td", { class: "num" }, number(each.score)), h("td", { class: "num soft" }, number(each.control)));
  const body = h("tbody", {}, unit.links.slice(0, LINKS).map(row));
  const rest = unit.links.length - LINKS;
  const more = rest > 0 ? h("button", { class: "more", type: "button", onclick: () => { body.append(...unit.links.slice(LINKS).map(row)); more.remove(); } }, `Show ${count(rest)} more`) : null;
  return h("section", { class: "block" }, h("h2", {}, "Related units"), h("div", { class: "scroll" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Unit"), h("th", { scope: "col" }, "How"), h("th", { scope: "col", class: "num" }, "Score"), h("th", { scope: "col", class: "num" }, "Control"))),
    body)), more);
}
