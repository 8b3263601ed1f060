// What is plotted by layer, made of the rows that the server gives: shares, lengths, losses, statistics of units.

import type { Records } from "../../data/source";
import type { Chart, Series } from "../../lib/figures";
import { capital, decapital, known, percent, type Numeric } from "../../lib/format";

type Share = Records["Share"];
type Loss = Records["Loss"];
type LayerStat = Records["LayerStat"];
type BasisCard = Records["BasisCard"];

export interface Drawing {
  title: string;
  read: string;
  chart: Chart;
}

export const PARTS: Record<string, { name: string; colour: string }> = {
  mu: { name: "mean", colour: "var(--grey)" },
  pos: { name: "position", colour: "var(--blue)" },
  ctx: { name: "context", colour: "var(--orange)" },
  resid: { name: "residual", colour: "var(--green)" },
};
const part = (name: string) => PARTS[name] ?? { name, colour: "var(--purple)" };
const FIRST_STATS = ["density", "kurtosis", "skewness", "std", "mean"];

// Sites of one family in the order of the forward pass: what enters layer 0 comes before what leaves it.
function places(rows: readonly { site: string | null; layer: number | null }[], family: string): string[] {
  const sites = new Map<string, number>();
  for (const { site, layer } of rows) {
    if (!site) continue;
    const name = site.split(".")[0];
    const first = family === "resid_post" && (name === "embed" || site === "resid_pre.0");
    if (name === family || first) sites.set(site, first ? -1 : (layer ?? 1e9));
  }
  return [...sites].sort((a, b) => a[1] - b[1]).map(([site]) => site);
}

const short = (site: string): string => (site === "embed" || site === "resid_pre.0" ? "in" : (site.split(".")[1] ?? site));

// Families of sites whose shares are measured, the one with most sites first.
export function families(rows: readonly Share[]): string[] {
  const names = [...new Set(rows.map((row) => row.site.split(".")[0]!))];
  return names
    .filter((name) => places(rows, name).length > 1 || places(rows, "resid_post").length === 0)
    .sort((a, b) => places(rows, b).length - places(rows, a).length);
}

const whole = (value: Numeric) => percent(value, 0);

export function shares(rows: readonly Share[], family: string): Drawing[] {
  const sites = places(rows, family);
  const parts = [...Object.keys(PARTS), ...new Set(rows.map((row) => row.part).filter((name) => !PARTS[name]))].filter((name) =>
    rows.some((row) => row.part === name),
  );
  const of = (name: string, key: "share" | "control" | "norm") =>
    sites.map((site) => rows.find((row) => row.site === site && row.part === name)?.[key] ?? null);
  const all = parts
    .map((name): Series & { part: string } => ({ part: name, ...part(name), values: of(name, "share"), control: name === "resid" ? undefined : of(name, "control") }))
    .filter((each) => each.values.some(known));
  const x = sites.map(short);
  const base = { x, xTitle: "layer" };
  const sum = Math.max(...sites.map((_, i) => all.reduce((total, each) => total + (each.values[i] ?? 0), 0)));
  const stack = sum > 1.02 ? all.filter((each) => each.part !== "mu") : all;
  const drawings: Drawing[] = [{
    title: "What hidden states are made of",
    read: `Each column is the stream after a layer (“in”: before the first), split into ${stack.map((each) => each.name).join(", ")}. A dashed mark shows where a part would end by chance.`,
    chart: { ...base, series: stack, draw: "stacked", format: whole },
  }];
  if (stack !== all) {
    drawings.push({
      title: "Share of the mean", read: "How much of the squared length of hidden states is one constant vector.",
      chart: { ...base, series: all.filter((each) => each.part === "mu"), draw: "lines", format: whole },
    });
  }
  const tested = all.filter((each) => each.control?.some(known));
  if (tested.length) {
    drawings.push({
      title: "Against chance",
      read: `The same shares of ${tested.map((each) => each.name).join(" and ")}, enlarged, each with its control dashed${kinds(parts, rows)}: a part is only there where its line is clear of the dashes.`,
      chart: { ...base, series: tested, draw: "lines", format: percent },
    });
  }
  return [...drawings, ...lengths(base, parts.map((name) => ({ ...part(name), values: of(name, "norm") })))];
}

function lengths(base: { x: string[]; xTitle: string }, all: Series[]): Drawing[] {
  const series = all.filter((each) => each.values.some(known));
  if (!series.length) return [];
  const values = series.flatMap((each) => each.values).filter(known).filter((value) => value > 0);
  const log = Math.max(...values) > 30 * Math.min(...values);
  return [{
    title: "How long the parts are",
    read: `Root mean square length of each part of the stream. A part that stays flat while the others grow is being drowned${log ? "; the scale is logarithmic" : ""}.`,
    chart: { ...base, series, draw: "lines", log },
  }];
}

// What each part was compared with: " (position: tokens reordered; context: ...)".
function kinds(parts: readonly string[], rows: readonly Share[]): string {
  const told = parts
    .filter((name) => name !== "resid")
    .map((name) => [name, rows.find((row) => row.part === name && row.control_kind)?.control_kind] as const)
    .filter(([, kind]) => kind);
  return told.length ? ` (${told.map(([name, kind]) => `${part(name).name}: ${kind}`).join("; ")})` : "";
}

export function losses(rows: readonly Loss[]): Drawing[] {
  const objectives = [...new Set(rows.filter((row) => row.site).map((row) => row.objective))];
  return objectives.map((objective) => {
    const mine = rows.filter((row) => row.site && row.objective === objective);
    const levels = rows.filter((row) => !row.site && row.objective.startsWith(objective));
    const family = mine.some((row) => row.site!.startsWith("resid_post")) ? "resid_post" : mine[0]!.site!.split(".")[0]!;
    const isEnd = (site: string | null) => site === "final_norm" || site === "logits";
    const sites = [...places(mine, family), ...mine.map((row) => row.site!).filter(isEnd)];
    const of = (key: "loss" | "control" | "lo" | "hi") => sites.map((site) => mine.find((row) => row.site === site)?.[key] ?? null);
    const [control, low, high] = [of("control"), of("lo"), of("hi")];
    const beside = [...new Set(mine.map((row) => row.control_kind).filter(Boolean))];
    const own: Series = {
      name: "loss", colour: "var(--blue)", values: of("loss"), control: control.some(known) ? control : undefined,
      low: low.some(known) ? low : undefined, high: low.some(known) ? high : undefined,
    };
    const flat = levels.map((row): Series => ({ name: level(row, objective), colour: "var(--grey)", flat: true, values: sites.map(() => row.loss) }));
    return {
      title: `Loss by layer, ${objective.replaceAll("_", " ")}`,
      read: `Nats per token if the model stopped after a layer and its own head read the stream there; lower is better${beside.length ? `. Control: ${beside.join(", ")}` : ""}.`,
      chart: { x: sites.map((site) => (isEnd(site) ? "end" : short(site))), xTitle: "layer", series: [own, ...flat], draw: "lines" },
    };
  });
}

// A loss that belongs to no layer, such as that of token frequencies alone.
const level = (row: Loss, objective: string): string =>
  row.objective.endsWith("unigram") ? "token frequencies alone" : row.objective.slice(objective.length).replaceAll("_", " ").trim() || "reference";

// The statistics of a basis that more than one layer has, the most telling first.
export function statNames(card: BasisCard, rows: readonly LayerStat[]): string[] {
  const mine = rows.filter((row) => row.basis === card.basis && row.layer !== null);
  const names = [...new Set(mine.map((row) => row.stat))].filter(
    (name) => new Set(mine.filter((row) => row.stat === name).map((row) => row.layer)).size > 1,
  );
  return [...FIRST_STATS.filter((name) => names.includes(name)), ...names.filter((name) => !FIRST_STATS.includes(name))];
}

export const columnOf = (card: BasisCard, name: string) =>
  card.columns.find((column) => column.name === name) ?? { label: name.replaceAll("_", " "), meaning: "" };

export function stat(card: BasisCard, name: string, all: readonly LayerStat[]): Drawing {
  const rows = all.filter((row) => row.basis === card.basis && row.layer !== null && row.stat === name);
  const { label, meaning } = columnOf(card, name);
  const [low, high] = [rows.map((row) => row.low), rows.map((row) => row.high)];
  const highs = high.filter(known).filter((value) => value > 0);
  const log = low.every((value) => known(value) && value > 0) && Math.max(...highs) > 40 * Math.min(...low.filter(known));
  return {
    title: `${label}, ${decapital(card.label)}`,
    read: `${meaning ? `${capital(meaning)}. ` : ""}Line: the median unit of a layer; band: the middle half${log ? "; the scale is logarithmic" : ""}.`,
    chart: {
      x: rows.map((row) => String(row.layer)), xTitle: "layer", draw: "lines", log,
      series: [{ name: "median", colour: "var(--orange)", values: rows.map((row) => row.middle), low, high }],
    },
  };
}
