// What the page Compare shows, as its address says it, and what it asks for.

import { problemOf, type Answer, type Problem, type Records } from "../../data/source";
import type { Asking } from "../../pages";

export type SideCard = Records["SideCard"];
export type Compared = Answer<"compared">;
export type StatAgreement = Records["StatAgreement"];

export const VIEWS = { units: "Units", states: "Hidden states", factors: "Factors", words: "Words" } as const;
export type View = keyof typeof VIEWS;
export const ORDERS = {
  surest: "surest first", effect: "largest effect", down: "larger in the other", up: "smaller in the other", unit: "address",
} as const;
export type Order = keyof typeof ORDERS;

export const PAGE = 50;
// the two runs have these colours on all of the page
export const ONE = "var(--blue)";
export const OTHER = "var(--orange)";

export interface UnitsOf {
  agreements: Answer<"compared_units">;
  stat: StatAgreement | null;
  points: Answer<"scatter"> | null;
  // nothing where only a server could tell
  rows: Answer<"differences"> | null;
  layer: string;
  order: Order;
  page: number;
}

export interface Data {
  own: SideCard | null;
  others: SideCard[];
  chosen: SideCard | null;
  // a name in the address that no run has
  missing: string;
  view: View;
  compared: Compared | null;
  units: UnitsOf | null;
  words: Answer<"compared_words"> | null;
  changes: Answer<"changes"> | null;
  block: Answer<"changed_block"> | null;
  problem: Problem | null;
}

const FIRST = ["kurtosis", "token_share_top", "importance", "density", "mean"];

const oneOf = <K extends string>(choices: Record<K, unknown>, asked: string | null, usual: K): K =>
  asked !== null && Object.hasOwn(choices, asked) ? (asked as K) : usual;

export const keyOf = ({ basis, column, site }: StatAgreement): string => `${basis} ${column.name} ${site}`;

// The statistic that is looked at: that of the address, else one that says much of a basis that has many units.
function chosenStat(stats: readonly StatAgreement[], parameters: URLSearchParams): StatAgreement | null {
  const [basis, stat, site] = ["basis", "stat", "site"].map((name) => parameters.get(name));
  const mine = basis ? stats.filter((each) => each.basis === basis) : stats;
  const asked = mine.find((each) => each.column.name === stat && each.site === (site ?? ""));
  const usual = FIRST.map((name) => mine.find((each) => each.column.name === name)).find(Boolean);
  return asked ?? mine.find((each) => each.column.name === stat) ?? usual ?? mine[0] ?? stats[0] ?? null;
}

async function unitsOf({ source, parameters, signal }: Asking, side: string): Promise<UnitsOf> {
  const agreements = await source.get("compared_units", { side }, signal);
  const stat = chosenStat(agreements.stats, parameters);
  const layer = /^\d+$/.test(parameters.get("layer") ?? "") ? parameters.get("layer")! : "";
  const order = oneOf<Order>(ORDERS, parameters.get("order"), "surest");
  const page = Math.max(0, Number.parseInt(parameters.get("page") ?? "1", 10) - 1 || 0);
  if (!stat) return { agreements, stat, points: null, rows: null, layer, order, page };
  const asked = { side, basis: stat.basis, stat: stat.column.name, site: stat.site };
  const [points, rows] = await Promise.all([
    source.get("scatter", asked, signal),
    source.kind === "static"
      ? null
      : source.get("differences", { ...asked, layer: layer === "" ? null : Number(layer), order, offset: page * PAGE, limit: PAGE }, signal),
  ]);
  return { agreements, stat, points, rows, layer, order, page };
}

// The run to compare with: that of the address, else the first that can be; a run of `microtome diff` last.
function sideOf(others: readonly SideCard[], asked: string | null): SideCard | null {
  if (asked) return others.find((each) => each.side === asked) ?? null;
  const can = others.filter((each) => !each.why);
  return can.find((each) => each.kind === "run") ?? can[0] ?? null;
}

export async function ask(asking: Asking): Promise<Data> {
  const { source, parameters, signal } = asking;
  const { own, others } = await source.get("sides", {}, signal);
  const wanted = parameters.get("with");
  const chosen = own && own.kind !== "run" ? own : sideOf(others, wanted === own?.side ? null : wanted);
  const view = oneOf<View>(VIEWS, parameters.get("view"), chosen?.units_why ? "states" : "units");
  const found: Data = {
    own, others, chosen, missing: wanted && !chosen ? wanted : "", view, compared: null, units: null, words: null, changes: null, block: null,
    problem: null,
  };
  if (!chosen || chosen.why) return found;
  try {
    if (chosen.kind !== "run") {
      const { side } = chosen;
      const [group, layer] = (parameters.get("block") ?? "").split(".");
      const changes = await source.get("changes", { side }, signal);
      const block = group ? source.get("changed_block", { side, group, layer: layer ? Number(layer) : null }, signal) : null;
      return { ...found, changes, block: await block };
    }
    const side = chosen.side;
    const [compared, units, words] = await Promise.all([
      source.get("compared", { side }, signal),
      view === "units" ? unitsOf(asking, side) : null,
      view === "words" ? source.get("compared_words", { side }, signal) : null,
    ]);
    return { ...found, compared, units, words };
  } catch (error) {
    if (signal.aborted) throw error;
    return { ...found, problem: problemOf(error) };
  }
}
