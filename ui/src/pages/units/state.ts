// What the unit browser shows, as its address says it.

import type { Parameters, Records } from "../../data/source";
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
  match: Match;
  label: string;
  least: string;
  most: string;
  clear: Clear;
  pattern: string;
  sort: string;
  order: "down" | "up";
  page: number;
}

// What is asked of the units beyond basis, layer and word, and how it is taken away.
export const FURTHER = ["label", "least", "most", "clear", "pattern"] as const;

const numeric = (text: string | null): string => (text !== null && text.trim() !== "" && Number.isFinite(Number(text)) ? text.trim() : "");

export function stateOf(bases: readonly Records["BasisCard"][], parameters: URLSearchParams): State {
  const wanted = parameters.get("basis");
  const card = bases.find((each) => each.basis === wanted) ?? bases.find((each) => each.basis === "neurons") ?? bases[0]!;
  const token = parameters.get("token") ?? "";
  const pattern = parameters.get("pattern") ?? "";
  const names = card.columns.map((column) => column.name);
  const usual = token ? "match" : (FIRST_SORT.find((name) => names.includes(name)) ?? "unit");
  const asked = parameters.get("sort") ?? "";
  const sort = ["unit", ...(token || pattern ? ["match"] : []), ...names].includes(asked) ? asked : usual;
  const layer = parameters.get("layer") ?? "";
  const match = parameters.get("match") ?? "";
  const clear = parameters.get("clear") ?? "";
  // bounds are of the statistic that units are sorted by
  const bound = (name: string) => (names.includes(sort) ? numeric(parameters.get(name)) : "");
  return {
    basis: card.basis, token, sort, pattern,
    layer: layer !== "" && card.layers.includes(Number(layer)) ? layer : "",
    order: parameters.get("order") === "up" ? "up" : "down",
    match: match in MATCHES ? (match as Match) : "any",
    label: (parameters.get("label") ?? "").trim(),
    least: bound("least"), most: bound("most"),
    clear: clear in CLEAR ? (clear as Clear) : "any",
    page: Math.max(0, Number.parseInt(parameters.get("page") ?? "1", 10) - 1 || 0),
  };
}

// What to ask for.
export function asked({ page, layer, least, most, ...state }: State): Parameters<"units"> {
  const value = (text: string) => (text === "" ? null : Number(text));
  return { ...state, layer: value(layer), least: value(least), most: value(most), offset: page * PAGE, limit: PAGE };
}

// The parameters of the browser with something changed; from its first page unless told otherwise.
function changed(state: State, change: Partial<Record<keyof State, Value>>): Record<string, Value> {
  const next = { ...state, page: 0, ...change };
  return {
    basis: next.basis, layer: next.layer, token: next.token, match: next.match === "any" ? "" : next.match, label: next.label,
    least: next.least, most: next.most, clear: next.clear === "any" ? "" : next.clear, pattern: next.pattern, sort: next.sort,
    order: next.order === "up" ? "up" : "", page: next.page ? Number(next.page) + 1 : "",
  };
}

export const link = (state: State, change: Partial<Record<keyof State, Value>> = {}): string => href("units", "", changed(state, change));

// The same filters with the map open.
export const mapLink = (state: State): string => href("units", "", { view: "map", ...changed(state, { page: state.page }) });
