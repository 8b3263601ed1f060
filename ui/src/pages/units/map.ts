// All units of a map at once: where they are, and how they are coloured.

import type { Records, Source } from "../../data/source";
import { known } from "../../lib/format";
import { spoken } from "../../lib/labels";
import { NO_CHOICE, UNKNOWN, type Left } from "../../lib/left";
import { ranks, SCALES, scaleOf, spread, type Axis, type Scale } from "../../lib/scales";
import type { Colouring } from "../../lib/scatter_colours";
import { firstPlace, numbers, numbersOf, type Numbers } from "./columns";
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

// Two numbers of all units of a basis, one across and one upwards.
export interface Axes {
  across: Axis & { key: string };
  upwards: Axis & { key: string };
  scale: Scale;
  // the numbers that there are
  options: [string, string][];
}

export interface Plan {
  maps: Maps;
  basis: string;
  // units where they are alike, or by two of their numbers
  layout: Layout | null;
  axes: Axes | null;
  // what it can be coloured by, and what it is coloured by: "layer", "label:…", "stat:…@site"
  choices: [string, string][];
  chosen: string;
  place: Int32Array;
  x: Float32Array;
  y: Float32Array;
  paint: Paint;
  // what the address asks of the map that there is not
  left: Left[];
  problems: Records["Problem"][];
}

// As an address names the map by two numbers.
export const NUMBERS = "numbers";
// Pairs of statistics that are told together, the first that a basis has; else one of them by layer.
const PAIRS = [["matching_score", "copying_score"], ["profile_centre", "profile_width"], ["skewness", "kurtosis"]] as const;
// Labels with a colour of their own; all others are one.
const OWN = 7;

type Where = Pick<Plan, "basis" | "layout" | "axes" | "place" | "x" | "y" | "problems">;

export async function planned(source: Source, summary: Records["Summary"], state: State, signal: AbortSignal): Promise<Plan> {
  const maps = await source.get("maps", {}, signal);
  const layout = maps.layouts.find((each) => each.layout === state.layout) ?? (state.layout === NUMBERS ? undefined : maps.layouts.find((each) => each.basis === state.basis));
  const where = layout ? await asLaidOut(source, layout, signal) : await byNumbers(source, summary, maps, state, signal);
  const { basis, place } = where;
  const choices = colours(maps, where, summary);
  const chosen = choices.some(([value]) => value === state.colour) ? state.colour : (choices[0]?.[0] ?? "");
  const [{ paint: every, problems }, fitting] = await Promise.all([
    painted(source, summary, basis, chosen, place, signal),
    narrowed(state) ? source.get("places", { ...asked(state), basis }, signal) : null,
  ]);
  const paint = fitting ? only(every, new Set(wholes(fitting.places)), place) : every;
  return { maps, ...where, choices, chosen, paint, left: leftOut(state, where, chosen), problems: [...maps.problems, ...where.problems, ...problems] };
}

function leftOut(state: State, { layout, axes }: Where, chosen: string): Left[] {
  const named = state.layout !== "" && state.layout !== NUMBERS && layout?.layout !== state.layout;
  return [
    ...(named ? [{ what: `map ${state.layout}`, why: UNKNOWN }] : []),
    ...(axes && state.across && axes.across.key !== state.across ? [{ what: `across ${state.across}`, why: UNKNOWN }] : []),
    ...(axes && state.upwards && axes.upwards.key !== state.upwards ? [{ what: `upwards ${state.upwards}`, why: UNKNOWN }] : []),
    ...(state.colour && chosen !== state.colour ? [{ what: `colour ${state.colour}`, why: UNKNOWN }] : []),
    ...(state.scale && !SCALES.some(([value]) => value === state.scale) ? [{ what: `by ${state.scale}`, why: NO_CHOICE }] : []),
  ];
}

async function asLaidOut(source: Source, layout: Layout, signal: AbortSignal): Promise<Where> {
  const page = await source.get("map", { layout: layout.layout }, signal);
  return { basis: layout.basis, layout, axes: null, place: wholes(page.place), x: floats(page.x), y: floats(page.y), problems: page.problems };
}

// Units that lack one of the numbers are left out.
async function byNumbers(source: Source, summary: Records["Summary"], maps: Maps, state: State, signal: AbortSignal): Promise<Where> {
  const { basis } = state;
  const card = summary.bases.find((each) => each.basis === basis);
  const options = numbersOf(maps, card);
  const there = (key: string) => options.some(([each]) => each === key);
  const pair = PAIRS.map((names) => names.map((name) => `stat:${name}`)).find((keys) => keys.every(there));
  const [first = "", second = ""] = pair ?? options.map(([key]) => key);
  const [across, upwards] = [there(state.across) ? state.across : first, there(state.upwards) ? state.upwards : second];
  const none = { basis, layout: null, axes: null, place: new Int32Array(), x: new Float32Array(), y: new Float32Array(), problems: [] };
  if (!across || !upwards) return none;
  const [one, other] = await Promise.all([across, upwards].map((key) => numbers(source, summary, basis, key, signal))) as [Numbers, Numbers];
  const begin = firstPlace(summary, basis);
  const all = Int32Array.from({ length: card?.units ?? 0 }, (_, n) => begin + n);
  const place = all.filter((at) => known(one.values[at]) && known(other.values[at]));
  const [x, y] = [one, other].map(({ values }) => Float32Array.from(place, (at) => values[at]!)) as [Float32Array, Float32Array];
  const scale = scaleOf(state.scale, x, y);
  // few values, as of layers, are spread out a little whichever way the others are drawn
  const placed = (values: Float32Array, axis: "across" | "upwards"): [Float32Array, Scale] => {
    const few = spread(values, axis);
    return few ? [few, "values"] : scale === "ranks" ? [ranks(values), scale] : [values, scale];
  };
  const [[left, byX], [top, byY]] = [placed(x, "across"), placed(y, "upwards")];
  const axes = { across: { key: across, name: one.name, by: byX }, upwards: { key: upwards, name: other.name, by: byY }, scale, options };
  return { basis, layout: null, axes, place, x: left, y: top, problems: [...one.problems, ...other.problems] };
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

// A dictionary's factors have no layer of their own. By two numbers labels come last: few bases have them.
function colours(maps: Maps, { basis, layout }: Where, summary: Records["Summary"]): [string, string][] {
  const mine = numbersOf(maps, summary.bases.find((each) => each.basis === basis));
  const labels = maps.labels.map(({ kind }): [string, string] => [`label:${kind}`, `label: ${kind}`]);
  return layout ? [...labels, ...mine.filter(([key]) => key !== "layer" || layout.name === null)] : [...mine, ...labels];
}

type Made = { paint: Paint; problems: Records["Problem"][] };

async function painted(
  source: Source, summary: Records["Summary"], basis: string, chosen: string, place: Int32Array, signal: AbortSignal,
): Promise<Made> {
  if (chosen.startsWith("label:")) {
    const column = await source.get("label_column", { kind: chosen.slice("label:".length) }, signal);
    return { paint: byLabel(column, place), problems: column.problems };
  }
  if (!chosen) return { paint: { shown: Uint32Array.from(place.keys()), colouring: undefined, tell: () => null, note: "" }, problems: [] };
  const { values, name, problems } = await numbers(source, summary, basis, chosen, signal);
  return { paint: byValue(values, place, name), problems };
}

// Those without a label are drawn first, and lie beneath.
function byLabel(column: Records["LabelColumn"], place: Int32Array): Paint {
  const all = codes(column.codes);
  const own = Math.min(OWN, column.texts.length);
  const rest = column.texts.length > own;
  const names = [...column.texts.slice(0, own).map((text) => spoken(column.kind, text)), ...(rest ? ["another label"] : []), "none"];
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
    tell: (point) => [column.kind, (all[place[point]!] ?? -1) < 0 ? "none" : spoken(column.kind, column.texts[all[place[point]!]!] ?? "")],
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
