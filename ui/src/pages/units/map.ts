// All units of a map at once: where they are, and how they are coloured.

import type { Records, Source } from "../../data/source";
import { known } from "../../lib/format";
import type { Colouring } from "../../lib/scatter_colours";
import { codes, floats, wholes } from "./packed";
import { asked, narrowed, type State } from "./state";

type Maps = Records["Maps"];
type Layout = Records["Layout"];

export interface Paint {
  // of the map's points, those that are drawn, in the order in which they are
  shown: Uint32Array;
  colouring: Colouring | undefined;
  // what is told of a point: a name and a value
  tell: (point: number) => readonly [string, string | number] | null;
  note: string;
}

export interface Plan {
  maps: Maps;
  layout: Layout | null;
  // what it can be coloured by, and what it is coloured by: "layer", "label:…", "stat:…@site"
  choices: [string, string][];
  chosen: string;
  place: Int32Array;
  x: Float32Array;
  y: Float32Array;
  paint: Paint | null;
  problems: Records["Problem"][];
}

// Labels with a colour of their own; all others are one.
const OWN = 7;

export async function planned(source: Source, summary: Records["Summary"], state: State, signal: AbortSignal): Promise<Plan> {
  const maps = await source.get("maps", {}, signal);
  const { basis } = state;
  const layout =
    maps.layouts.find((each) => each.layout === state.layout) ?? maps.layouts.find((each) => each.basis === basis) ?? maps.layouts[0] ?? null;
  const none = { maps, layout, choices: [], chosen: "", place: new Int32Array(), x: new Float32Array(), y: new Float32Array(), paint: null };
  if (!layout) return { ...none, problems: maps.problems };
  const choices = colours(maps, layout, summary);
  const chosen = choices.some(([value]) => value === state.colour) ? state.colour : (choices[0]?.[0] ?? "");
  const page = await source.get("map", { layout: layout.layout }, signal);
  const place = wholes(page.place);
  const [{ paint: every, problems }, fitting] = await Promise.all([
    painted(source, summary, layout, chosen, place, signal),
    narrowed(state) ? source.get("places", { ...asked(state), basis: layout.basis }, signal) : null,
  ]);
  const paint = fitting ? only(every, new Set(wholes(fitting.places)), place) : every;
  return { maps, layout, choices, chosen, place, x: floats(page.x), y: floats(page.y), paint, problems: [...maps.problems, ...page.problems, ...problems] };
}

// Of the points those of the units that fit the filters.
function only(paint: Paint, fitting: ReadonlySet<number>, place: Int32Array): Paint {
  const kept = Uint32Array.from(Array.from(paint.shown.keys()).filter((n) => fitting.has(place[paint.shown[n]!]!)));
  const shown = kept.map((n) => paint.shown[n]!);
  const { colouring } = paint;
  const pick = (): Colouring | undefined => {
    if (!colouring) return undefined;
    if (colouring.kind === "categories") return { ...colouring, of: Uint8Array.from(kept, (n) => colouring.of[n]!) };
    return { ...colouring, of: Float32Array.from(kept, (n) => colouring.of[n]!) };
  };
  const note = `${shown.length.toLocaleString("en-US")} of ${place.length.toLocaleString("en-US")} units fit the filters; the others are left out.`;
  return { ...paint, shown, colouring: pick(), note: [paint.note, note].filter(Boolean).join(" ") };
}

function colours(maps: Maps, layout: Layout, summary: Records["Summary"]): [string, string][] {
  const card = summary.bases.find((each) => each.basis === layout.basis);
  const mine = maps.columns.filter(({ column }) => card?.columns.some((each) => each.name === column.name));
  return [
    ...maps.labels.map(({ kind }): [string, string] => [`label:${kind}`, `label: ${kind}`]),
    ...(layout.name === null && card?.layers.length ? [["layer", "layer"] as [string, string]] : []),
    ...mine.flatMap(({ column, sites }): [string, string][] => [
      [`stat:${column.name}`, column.label],
      ...sites.map((site): [string, string] => [`stat:${column.name}@${site}`, `${column.label}, ${site}`]),
    ]),
  ];
}

type Made = { paint: Paint; problems: Records["Problem"][] };

async function painted(
  source: Source, summary: Records["Summary"], layout: Layout, chosen: string, place: Int32Array, signal: AbortSignal,
): Promise<Made> {
  if (chosen.startsWith("label:")) {
    const column = await source.get("label_column", { kind: chosen.slice("label:".length) }, signal);
    return { paint: byLabel(column, place), problems: column.problems };
  }
  if (chosen.startsWith("stat:")) {
    const [stat = "", site = ""] = chosen.slice("stat:".length).split("@");
    const column = await source.get("column", { stat, site }, signal);
    return { paint: byValue(floats(column.values), place, column.column.label), problems: column.problems };
  }
  if (chosen === "layer") {
    const { units, problems } = await source.get("overview", {}, signal);
    return { paint: byValue(depths(units, summary, layout.basis), place, "layer"), problems };
  }
  return { paint: { shown: Uint32Array.from(place.keys()), colouring: undefined, tell: () => null, note: "" }, problems: [] };
}

// The first place of a basis: units are in the order of the letters of their bases.
export const firstPlace = (summary: Records["Summary"], basis: string): number =>
  summary.bases.reduce((sum, card) => sum + (card.basis < basis ? card.units : 0), 0);

// The layer of each place: within a basis units are in the order of their layers.
function depths(units: Records["LayerUnits"][], summary: Records["Summary"], basis: string): Float32Array {
  const mine = units.filter((each) => each.basis === basis).sort((a, b) => (a.layer ?? -1) - (b.layer ?? -1));
  let at = firstPlace(summary, basis);
  const layers = new Float32Array(at + mine.reduce((sum, each) => sum + each.units, 0)).fill(NaN);
  for (const each of mine) {
    layers.fill(each.layer ?? NaN, at, at + each.units);
    at += each.units;
  }
  return layers;
}

// Those without a label are drawn first, and lie beneath.
function byLabel(column: Records["LabelColumn"], place: Int32Array): Paint {
  const all = codes(column.codes);
  const own = Math.min(OWN, column.texts.length);
  const rest = column.texts.length > own;
  const names = [...column.texts.slice(0, own), ...(rest ? ["another label"] : []), "none"];
  const colours = ["var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--vermilion)", "var(--sky)", "var(--olive)"];
  const category = (point: number) => {
    const code = all[place[point]!] ?? -1;
    return code < 0 ? names.length - 1 : Math.min(code, rest ? own : own - 1);
  };
  const points = Array.from(place.keys());
  const shown = Uint32Array.from([...points.filter((n) => (all[place[n]!] ?? -1) < 0), ...points.filter((n) => (all[place[n]!] ?? -1) >= 0)]);
  return {
    shown,
    colouring: {
      kind: "categories", of: Uint8Array.from(shown, category), names,
      colours: [...colours.slice(0, own), ...(rest ? ["var(--grey)"] : []), "var(--line)"],
    },
    tell: (point) => [column.kind, (all[place[point]!] ?? -1) < 0 ? "none" : (column.texts[all[place[point]!]!] ?? "")],
    note: "",
  };
}

// The ends of the scale leave out the outermost hundredth on each side.
function byValue(values: Float32Array, place: Int32Array, name: string): Paint {
  const at = (point: number) => values[place[point]!] ?? NaN;
  const shown = Uint32Array.from(Array.from(place.keys()).filter((point) => known(at(point))));
  const of = Float32Array.from(shown, at);
  const sorted = of.slice().sort();
  const low = sorted[Math.floor(0.01 * sorted.length)] ?? 0;
  const high = sorted[Math.floor(0.99 * (sorted.length - 1))] ?? 1;
  const top = Math.max(Math.abs(low), Math.abs(high));
  const signed = low < -0.05 * top && high > 0.05 * top;
  const without = place.length - shown.length;
  return {
    shown,
    colouring: signed ? { kind: "diverging", of, name, low: -top, high: top } : { kind: "sequential", of, name, low, high },
    tell: (point) => [name, at(point)],
    note: without ? `${without.toLocaleString("en-US")} of its units have no such value and are left out.` : "",
  };
}
