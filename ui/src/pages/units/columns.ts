// Numbers of all units, by their place: statistics, and the layer.

import type { Records, Source } from "../../data/source";
import { floats } from "./packed";

export interface Numbers {
  values: Float32Array;
  name: string;
  problems: Records["Problem"][];
}

// Which numbers of a basis' units there are: a key ("layer", "stat:…", "stat:…@site") and a name each.
export function numbersOf(maps: Records["Maps"], card: Records["BasisCard"] | undefined): [string, string][] {
  const mine = maps.columns.filter(({ column }) => card?.columns.some((each) => each.name === column.name));
  return [
    ...(card?.layers.length ? [["layer", "layer"] as [string, string]] : []),
    ...mine.flatMap(({ column, sites }): [string, string][] => [
      [`stat:${column.name}`, column.label],
      ...sites.map((site): [string, string] => [`stat:${column.name}@${site}`, `${column.label}, ${site}`]),
    ]),
  ];
}

export async function numbers(source: Source, summary: Records["Summary"], basis: string, key: string, signal: AbortSignal): Promise<Numbers> {
  if (key === "layer") {
    const { units, problems } = await source.get("overview", {}, signal);
    return { values: depths(units, summary, basis), name: "layer", problems };
  }
  const [stat = "", site = ""] = key.slice("stat:".length).split("@");
  const { values, column, problems } = await source.get("column", { stat, site }, signal);
  return { values: floats(values), name: site ? `${column.label}, ${site}` : column.label, problems };
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
