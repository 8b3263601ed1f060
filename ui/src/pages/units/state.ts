// What the unit browser shows, as its address says it.

import type { Parameters, Records } from "../../data/source";
import { NO_CHOICE, NO_NUMBER, UNKNOWN, type Left } from "../../lib/left";
import { href, type Value } from "../../router";

export const PAGE = 50;
export const MATCHES = { any: "writes or fires on it", promotes: "promotes it", suppresses: "suppresses it", fires: "fires on it" } as const;
export const CLEAR = { any: "whether or not", yes: "survives it", no: "does not" } as const;

export type Match = keyof typeof MATCHES;
export type Clear = keyof typeof CLEAR;

const FIRST_SORT = ["read_top", "token_share_top", "importance", "kurtosis"];

export interface State {
  basis: string;
  layer: string;
  token: string;
  // of the tokens that spell the word the one that is meant
  exact: string;
  match: Match;
  label: string;
  least: string;
  most: string;
  clear: Clear;
  pattern: string;
  phrase: string;
  meaning: string;
  sort: string;
  order: "down" | "up";
  page: number;
  // a map of those units instead of a list, which one, of which numbers and how these are drawn, and what it is coloured by
  view: "list" | "map";
  layout: string;
  across: string;
  upwards: string;
  scale: string;
  colour: string;
}

// What is asked of the units beyond basis, layer and word, and how it is taken away.
export const FURTHER = ["meaning", "phrase", "label", "least", "most", "clear", "pattern"] as const;

// What units are found by, and how well they fit it.
export const searched = (state: { token: string; pattern: string; phrase: string; meaning: string }): boolean =>
  [state.token, state.pattern, state.phrase, state.meaning].some((text) => text !== "");

const numeric = (text: string | null): string => (text !== null && text.trim() !== "" && Number.isFinite(Number(text)) ? text.trim() : "");

// Pages are counted from 1 in an address.
const pageOf = (text: string | null): number | null => (/^0*[1-9]\d{0,8}$/.test(text ?? "1") ? Number(text ?? 1) - 1 : null);

export function stateOf(bases: readonly Records["BasisCard"][], parameters: URLSearchParams): State {
  const wanted = parameters.get("basis");
  const card = bases.find((each) => each.basis === wanted) ?? bases.find((each) => each.basis === "neurons") ?? bases[0]!;
  const token = parameters.get("token") ?? "";
  const text = (name: string) => (parameters.get(name) ?? "").trim();
  const [pattern, phrase, meaning] = [parameters.get("pattern") ?? "", text("phrase"), text("meaning")];
  const found = searched({ token, pattern, phrase, meaning });
  const exact = numeric(parameters.get("exact"));
  const names = card.columns.map((column) => column.name);
  const usual = token || phrase || meaning ? "match" : (FIRST_SORT.find((name) => names.includes(name)) ?? "unit");
  const asked = parameters.get("sort") ?? "";
  const sort = ["unit", ...(found ? ["match"] : []), ...names].includes(asked) ? asked : usual;
  const layer = text("layer");
  const match = parameters.get("match") ?? "";
  const clear = parameters.get("clear") ?? "";
  // bounds are of the statistic that units are sorted by
  const bound = (name: string) => (names.includes(sort) ? numeric(parameters.get(name)) : "");
  return {
    basis: card.basis, token, sort, pattern, phrase, meaning,
    exact: token && /^\d+$/.test(exact) ? exact : "",
    layer: layer !== "" && card.layers.includes(Number(layer)) ? layer : "",
    order: parameters.get("order") === "up" ? "up" : "down",
    match: Object.hasOwn(MATCHES, match) ? (match as Match) : "any",
    label: (parameters.get("label") ?? "").trim(),
    least: bound("least"), most: bound("most"),
    clear: Object.hasOwn(CLEAR, clear) ? (clear as Clear) : "any",
    page: pageOf(parameters.get("page")) ?? 0,
    view: parameters.get("view") === "map" ? "map" : "list", layout: text("layout"), colour: text("colour"),
    across: text("across"), upwards: text("upwards"), scale: text("scale"),
  };
}

const NAMES: readonly string[] = [
  "run", "basis", "layer", "token", "exact", "match", "label", "least", "most", "clear", "pattern", "phrase", "meaning", "sort", "order", "page",
  "view", "layout", "across", "upwards", "scale", "colour",
];
const BOUNDS = { least: "at least", most: "at most" } as const;

// What the address asks of the browser and `stateOf` does not understand.
export function leftOut(bases: readonly Records["BasisCard"][], parameters: URLSearchParams): Left[] {
  const state = stateOf(bases, parameters);
  const asked = (name: string) => (parameters.get(name) ?? "").trim();
  const left: Left[] = [];
  const leave = (name: string, why: string, called = name) => left.push({ what: `${called} ${asked(name)}`.trim(), why });
  const other = (name: keyof State, usual = "") => asked(name) !== "" && asked(name) !== usual && asked(name) !== state[name];
  if (other("basis")) leave("basis", UNKNOWN);
  if (other("layer")) leave("layer", UNKNOWN);
  if (other("sort", "match")) leave("sort", UNKNOWN, "order by");
  for (const name of ["least", "most"] as const) {
    if (other(name)) leave(name, numeric(asked(name)) === "" ? NO_NUMBER : "units are not ordered by a statistic, which is what has bounds", BOUNDS[name]);
  }
  if (other("exact")) leave("exact", state.token ? NO_NUMBER : "no word is looked for", "token");
  if (other("match")) leave("match", NO_CHOICE);
  if (other("clear")) leave("clear", NO_CHOICE, "beside its control");
  if (other("order")) leave("order", NO_CHOICE);
  if (other("view")) leave("view", NO_CHOICE);
  if (pageOf(parameters.get("page") || "1") === null) leave("page", NO_CHOICE);
  for (const name of new Set(parameters.keys())) if (!NAMES.includes(name)) leave(name, NO_CHOICE);
  return left;
}

// What to ask for.
export function asked(state: State): Parameters<"units"> {
  const value = (text: string) => (text === "" ? null : Number(text));
  const { basis, token, match, label, clear, pattern, phrase, meaning, sort, order, page } = state;
  const numbers = { layer: value(state.layer), least: value(state.least), most: value(state.most), exact: value(state.exact) };
  return { basis, token, match, label, clear, pattern, phrase, meaning, sort, order, ...numbers, offset: page * PAGE, limit: PAGE };
}

// Whether any but all units of a basis are asked for.
export const narrowed = (state: State): boolean => state.layer !== "" || state.token !== "" || FURTHER.some((name) => state[name] !== "" && state[name] !== "any");

// The parameters of the browser with something changed; from its first page unless told otherwise.
function changed(state: State, change: Partial<Record<keyof State, Value>>): Record<string, Value> {
  const next = { ...state, page: 0, ...change };
  // how well they match is nothing where nothing is looked for
  if (next.sort === "match" && ![next.token, next.pattern, next.phrase, next.meaning].some(Boolean)) next.sort = "";
  return {
    basis: next.basis, layer: next.layer, token: next.token, exact: next.exact, phrase: next.phrase, meaning: next.meaning, match: next.match === "any" ? "" : next.match, label: next.label,
    least: next.least, most: next.most, clear: next.clear === "any" ? "" : next.clear, pattern: next.pattern, sort: next.sort,
    order: next.order === "up" ? "up" : "", page: next.page ? Number(next.page) + 1 : "",
    ...(next.view === "map" ? { view: "map", layout: next.layout, across: next.across, upwards: next.upwards, scale: next.scale, colour: next.colour } : {}),
  };
}

export const link = (state: State, change: Partial<Record<keyof State, Value>> = {}): string => href("units", "", changed(state, change));
