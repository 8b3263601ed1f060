// Everything by layer: shares of variance, norms, losses, and the middle of every statistic of the units.

import { h, empty } from "./dom.js";
import { number, percent } from "./format.js";
import { figure } from "./plots.js";
import { go, href } from "./router.js";

const PARTS = { mu: ["mean", "c-mu"], pos: ["position", "c-pos"], ctx: ["context", "c-ctx"], resid: ["residual", "c-resid"] };
const FIRST_STATS = ["density", "kurtosis", "skewness", "std", "mean"];

export async function render({ source, summary, params, el }) {
  const layers = await source.layers();
  el.append(h("h1", {}, "By layer"), h("p", { class: "lede" }, "Point at a chart, or focus it and use the arrow keys, to read its numbers."));
  const grid = h("div", { class: "figures2" });
  shares(grid, layers.shares, params);
  losses(grid, layers.losses);
  stats(grid, layers.stats, params, summary.bases);
  el.append(grid.children.length ? grid : empty("Nothing is measured by layer in this run: it may still be being built, or be of the weights alone."));
}

function choice(label, options, chosen, change, words = (value) => value) {
  return h("label", { class: "field" }, h("span", {}, label),
    h("select", { onchange: (event) => change(event.target.value) }, options.map((each) => h("option", { value: each, selected: each === chosen }, words(each)))));
}

// Sites of one family in the order of the forward pass: what enters layer 0 comes before what leaves it.
function places(rows, family) {
  const sites = new Map();
  for (const row of rows) {
    if (!row.site) continue;
    const name = row.site.split(".")[0];
    const first = family === "resid_post" && (name === "embed" || row.site === "resid_pre.0");
    if (name === family || first) sites.set(row.site, first ? -1 : row.layer ?? 1e9);
  }
  return [...sites].sort((a, b) => a[1] - b[1]).map(([site]) => site);
}

const short = (site) => (site === "embed" || site === "resid_pre.0" ? "in" : site.split(".")[1] ?? site);

function shares(grid, rows, params) {
  if (!rows.length) return;
  const families = [...new Set(rows.map((row) => row.site.split(".")[0]))].filter((name) => places(rows, name).length > 1 || places(rows, "resid_post").length === 0).sort((a, b) => places(rows, b).length - places(rows, a).length);
  const family = families.includes(params.get("site")) ? params.get("site") : families.includes("resid_post") ? "resid_post" : families[0];
  const sites = places(rows, family);
  const parts = [...Object.keys(PARTS), ...new Set(rows.map((row) => row.part).filter((part) => !PARTS[part]))].filter((part) => rows.some((row) => row.part === part));
  const of = (part, key) => sites.map((site) => rows.find((row) => row.site === site && row.part === part)?.[key] ?? null);
  const series = (key, control) => parts.map((part) => ({
    name: PARTS[part]?.[0] ?? part, cls: PARTS[part]?.[1] ?? "c-other", values: of(part, key), ...(control ? { control: of(part, "control") } : {}),
  })).filter((each) => each.values.some((value) => value !== null));
  const tools = families.length > 1 ? choice("Site", families, family, (value) => go(href("layers", "", { ...Object.fromEntries(params), site: value }))) : null;
  const x = sites.map(short);
  const all = series("share", true).map((each) => (each.cls === "c-resid" ? { ...each, control: null } : each));
  const sum = Math.max(...sites.map((_, i) => all.reduce((total, each) => total + (each.values[i] ?? 0), 0)));
  const stack = sum > 1.02 ? all.filter((each) => each.cls !== "c-mu") : all;
  grid.append(figure({
    title: "What hidden states are made of", x, xTitle: "layer", series: stack, draw: "stacked", format: (value) => percent(value, 0), tools,
    read: `Each column is the stream after a layer (\u201cin\u201d: before the first), split into ${stack.map((each) => each.name).join(", ")}. A dashed mark shows where a part would end by chance.`,
  }));
  if (stack !== all) {
    grid.append(figure({ title: "Share of the mean", x, xTitle: "layer", series: all.filter((each) => each.cls === "c-mu"), draw: "lines", format: (value) => percent(value, 0), read: "How much of the squared length of hidden states is one constant vector." }));
  }
  const tested = all.filter((each) => each.control?.some((value) => value !== null) && each.cls !== "c-resid");
  if (tested.length) {
    grid.append(figure({
      title: "Against chance", x, xTitle: "layer", series: tested, draw: "lines", format: (value) => percent(value),
      read: `The same shares of ${tested.map((each) => each.name).join(" and ")}, enlarged, each with its control dashed${kind(parts, rows)}: a part is only there where its line is clear of the dashes.`,
    }));
  }
  const norms = series("norm", false);
  if (norms.length) {
    const values = norms.flatMap((each) => each.values).filter((value) => value > 0);
    grid.append(figure({
      title: "How long the parts are", x, xTitle: "layer", series: norms, draw: "lines", log: Math.max(...values) > 30 * Math.min(...values),
      read: `Root mean square length of each part of the stream. A part that stays flat while the others grow is being drowned${Math.max(...values) > 30 * Math.min(...values) ? "; the scale is logarithmic" : ""}.`,
    }));
  }
}

// What each part was compared with: " (position: tokens reordered; context: ...)".
function kind(parts, rows) {
  const known = parts.filter((part) => part !== "resid").map((part) => [part, rows.find((row) => row.part === part && row.control_kind)?.control_kind]).filter(([, each]) => each);
  return known.length ? ` (${known.map(([part, each]) => `${PARTS[part]?.[0] ?? part}: ${each}`).join("; ")})` : "";
}

function losses(grid, rows) {
  for (const objective of [...new Set(rows.filter((row) => row.site).map((row) => row.objective))]) {
    const mine = rows.filter((row) => row.site && row.objective === objective);
    const levels = rows.filter((row) => !row.site && row.objective.startsWith(objective));
    const family = mine.some((row) => row.site.startsWith("resid_post")) ? "resid_post" : mine[0].site.split(".")[0];
    const sites = [...places(mine, family), ...mine.map((row) => row.site).filter((site) => site === "final_norm" || site === "logits")];
    const of = (key) => sites.map((site) => mine.find((row) => row.site === site)?.[key] ?? null);
    const control = of("control");
    const kinds = [...new Set(mine.map((row) => row.control_kind).filter(Boolean))];
    grid.append(figure({
      title: `Loss by layer, ${objective.replaceAll("_", " ")}`, x: sites.map((site) => (site === "final_norm" || site === "logits" ? "end" : short(site))), xTitle: "layer", draw: "lines",
      series: [{ name: "loss", cls: "c-pos", values: of("loss"), ...(control.some((value) => value !== null) ? { control } : {}), ...(of("lo").some((value) => value !== null) ? { low: of("lo"), high: of("hi") } : {}), bandOf: inside(of) ? "value" : "control" },
        ...levels.map((row) => ({ name: level(row, objective), cls: "c-mu", flat: true, values: sites.map(() => row.loss) }))],
      read: `Nats per token if the model stopped after a layer and its own head read the stream there; lower is better${kinds.length ? `. Control: ${kinds.join(", ")}` : ""}.`,
    }));
  }
}

// A loss that belongs to no layer, such as that of token frequencies alone.
const level = (row, objective) => (row.objective.endsWith("unigram") ? "token frequencies alone" : row.objective.slice(objective.length).replaceAll("_", " ").trim() || "reference");

// Whether the interval is around the value rather than around the control.
function inside(of) {
  const loss = of("loss"), low = of("lo"), high = of("hi");
  return loss.every((value, i) => low[i] === null || (low[i] <= value && value <= high[i]));
}

function stats(grid, rows, params, cards) {
  for (const card of cards) {
    const { basis } = card;
    const mine = rows.filter((row) => row.basis === basis && row.layer !== null);
    const names = [...new Set(mine.map((row) => row.stat))].filter((name) => new Set(mine.filter((row) => row.stat === name).map((row) => row.layer)).size > 1);
    const ranked = [...FIRST_STATS.filter((name) => names.includes(name)), ...names.filter((name) => !FIRST_STATS.includes(name))];
    const shown = [...new Set([...ranked.slice(0, 2), params.get("stat") && names.includes(params.get("stat")) ? params.get("stat") : ranked[2]].filter(Boolean))];
    shown.forEach((name, n) => grid.append(statFigure(card, name, mine.filter((row) => row.stat === name),
      n === shown.length - 1 && ranked.length > 3 ? choice("Statistic", ranked, name, (value) => go(href("layers", "", { ...Object.fromEntries(params), stat: value })), (value) => columnOf(card, value).label) : null)));
  }
}

const columnOf = (card, name) => card.columns.find((column) => column.name === name) ?? { label: name.replaceAll("_", " "), meaning: "" };

function statFigure(card, name, rows, tools) {
  const of = (key) => rows.map((row) => row[key]);
  const column = columnOf(card, name);
  const highs = of("high").filter((value) => value > 0), lows = of("low");
  const log = lows.every((value) => value > 0) && Math.max(...highs) > 40 * Math.min(...lows);
  return figure({
    title: `${column.label}, ${card.label.charAt(0).toLowerCase()}${card.label.slice(1)}`, x: rows.map((row) => String(row.layer)), xTitle: "layer", draw: "lines", log, tools, format: number,
    series: [{ name: "median", cls: "c-ctx", values: of("middle"), low: lows, high: of("high") }],
    read: `${column.meaning ? `${column.meaning.charAt(0).toUpperCase()}${column.meaning.slice(1)}. ` : ""}Line: the median unit of a layer; band: the middle half${log ? "; the scale is logarithmic" : ""}.`,
  });
}
