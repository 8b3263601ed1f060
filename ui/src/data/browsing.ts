// The unit browser of an export: what a server does with SQL, done here over columns.

import type { Answer, Parameters, Records } from "./source";
import { address, groupAt, places as readPlaces, shard, type Group, type Mine, type Places } from "./shards";
import { problem } from "./source";

type Match = Records["Match"];
type Search = Records["Suggestions"];
type Query = Parameters<"units">;

interface Tokens {
  promotes: (number[] | null)[];
  fires: (number[] | null)[];
  total: (number | null)[];
}

const KINDS = ["promotes", "suppresses", "fires"] as const;
const NEAR = 24;

const bare = (text: string): string => text.replace(/^##/, "").trim().toLowerCase();

export async function findTokens(word: string): Promise<Search> {
  const wanted = bare(word);
  const texts = await shard<string[]>("vocabulary");
  if (!wanted) return { tokens: [], near: [] };
  const tokens: Search["tokens"] = [];
  const near: { length: number; token: number; text: string }[] = [];
  texts.forEach((text, token) => {
    const each = bare(text);
    if (each === wanted) tokens.push({ token, text });
    else if (each.includes(wanted)) near.push({ length: each.length, token, text });
  });
  near.sort((a, b) => a.length - b.length || a.token - b.token);
  return { tokens, near: near.slice(0, NEAR).map(({ token, text }) => ({ token, text })) };
}

// What a server alone can tell: meanings and phrases; labels, and what survives its control, are on the units' own pages in an export.
function refuse(query: Query): void {
  const instead = "take the filter away, or open the atlas itself with `microtome open`";
  if (query.label?.trim()) throw problem("label", "a static copy has the labels of units on their pages, not in its browser", instead);
  if (query.meaning?.trim()) throw problem("meaning", "a static copy cannot tell what units are about", instead);
  if (query.phrase?.trim()) throw problem("phrase", "a static copy cannot look for phrases in the text", instead);
  if (query.clear && query.clear !== "any") throw problem("clear", "a static copy does not say in its browser what survives a control", instead);
}

// Tokens in whose text a regular expression is found; what stands for "whatever the case" is a flag here.
function fitting(texts: readonly string[], pattern: string): { token: number; text: string }[] {
  const [, bare = ""] = /^(?:\(\?i\))?([^]*)$/.exec(pattern) ?? [];
  let wanted: RegExp;
  try {
    wanted = new RegExp(bare, bare === pattern ? "u" : "iu");
  } catch (error) {
    const why = String(error instanceof Error ? error.message : error).replace(/^Invalid regular expression: /, "");
    throw problem(`pattern ${pattern.slice(0, 80)}`, `it is no regular expression (${why.slice(0, 120)})`, "put a \\ before signs that stand for themselves");
  }
  return texts.flatMap((text, token) => (typeof text === "string" && wanted.test(text) ? [{ token, text }] : []));
}

// Best ranks and times, by place, of the units that have to do with tokens.
async function matching(mine: Mine, tokens: readonly { token: number }[], where: string, places: Places): Promise<Map<number, Match>> {
  const found = new Map<number, Match>();
  for (const { token } of tokens) {
    const entries = await mine<Record<string, [number, number, number][]>>(`search/${token % places.tokens}`);
    for (const [place, kind, number] of entries[token] ?? []) {
      const name = KINDS[kind];
      if (!name || (where !== "any" && where !== name)) continue;
      const match = found.get(place) ?? { promotes: null, suppresses: null, fires: null, of: null };
      if (name === "fires") match.fires = (match.fires ?? 0) + number;
      else match[name] = match[name] === null ? number : Math.min(match[name], number);
      found.set(place, match);
    }
  }
  return found;
}

const closeness = (match: Match, of: number | null | undefined): number =>
  Math.max(
    match.promotes === null ? 0 : 1 / (1 + match.promotes),
    match.suppresses === null ? 0 : 1 / (1 + match.suppresses),
    match.fires === null ? 0 : match.fires / (of || 1),
  );

export async function units(mine: Mine, query: Query): Promise<Answer<"units">> {
  refuse(query);
  const [places, summary, index, tokens] = await Promise.all([
    readPlaces(), mine<Records["Summary"]>("summary"), mine<{ stats: string[] }>("columns/index"), mine<Tokens>("columns/tokens"),
  ]);
  const cards = summary.bases.filter((card) => !query.basis || card.basis === query.basis);
  const named = cards.flatMap((card) => card.columns);
  const columns = index.stats.flatMap((name) => named.find((column) => column.name === name) ?? []);
  const search = query.token?.trim() ? await findTokens(query.token) : null;
  const fit = query.pattern ? fitting(await shard<string[]>("vocabulary"), query.pattern) : null;
  const exact = query.exact ?? null;
  const told = search ? await matching(mine, search.tokens.filter((each) => exact === null || each.token === exact), query.match ?? "any", places) : null;
  const firing = fit ? await matching(mine, fit, "fires", places) : null;
  const found = both(told, firing);
  const whole = (name: string) => mine<{ values: (number | null)[]; controls?: (number | null)[] }>(`columns/${index.stats.indexOf(name)}`);
  const column = async (name: string) => (await whole(name)).values;
  const down = query.order !== "up";
  const sort = query.sort ?? "unit";
  let chosen = await bounded(candidates(places, query, found), query, index.stats.includes(sort) ? () => column(sort) : null);
  if (index.stats.includes(sort)) chosen = byValue(chosen, await column(sort), down);
  else if (sort === "match" && found) chosen = byFit(chosen, found, tokens);
  else if (!down) chosen.reverse();
  const offset = query.offset ?? 0;
  const shown = chosen.slice(offset, offset + (query.limit ?? 50));
  const controls = index.stats.includes(sort) ? (await whole(sort)).controls : undefined;
  const [texts, ...values] = await Promise.all([shard<string[]>("vocabulary"), ...columns.map((each) => column(each.name))]);
  const spell = (ids: number[] | null | undefined) => (ids ?? []).map((token) => texts[token] ?? `[${token}]`);
  const rows = shown.map((place) => {
    const group = groupAt(places, place);
    const match = found?.get(place);
    return {
      unit: address(group, place), layer: group.layer, promotes: spell(tokens.promotes[place]), fires: spell(tokens.fires[place]),
      values: values.map((each) => each[place] ?? null), control: controls?.[place] ?? null, match: match ? { ...match, of: tokens.total[place] ?? null } : null,
    };
  });
  const pattern = fit && { tokens: fit.length, some: fit.slice(0, NEAR) };
  return { total: chosen.length, offset, columns, search, pattern, rows };
}

// Units in both; how they match is told of the word where there is one.
function both(told: Map<number, Match> | null, firing: Map<number, Match> | null): Map<number, Match> | null {
  if (!told || !firing) return told ?? firing;
  return new Map([...told].filter(([place]) => firing.has(place)));
}

// Those between the bounds of the statistic that they are sorted by.
async function bounded(chosen: number[], { least, most }: Query, column: (() => Promise<(number | null)[]>) | null): Promise<number[]> {
  const [low, high] = [least ?? null, most ?? null];
  if (low === null && high === null) return chosen;
  if (!column) throw problem("bounds", "units are sorted by nothing that has a value", "sort by a statistic");
  const values = await column();
  return chosen.filter((place) => {
    const value = values[place] ?? null;
    return value !== null && (low === null || value >= low) && (high === null || value <= high);
  });
}

function candidates(places: Places, query: Query, found: Map<number, Match> | null): number[] {
  const fits = (group: Group) =>
    (!query.basis || group.basis === query.basis) && (query.layer === null || query.layer === undefined || group.layer === query.layer);
  if (found) return [...found.keys()].filter((place) => fits(groupAt(places, place))).sort((a, b) => a - b);
  return places.groups.filter(fits).flatMap((group) => Array.from({ length: group.count }, (_, n) => group.place + n));
}

// Those without a value come last whichever way the others go.
function byValue(chosen: number[], values: (number | null)[], down: boolean): number[] {
  const there = chosen.filter((place) => (values[place] ?? null) !== null);
  const missing = chosen.filter((place) => (values[place] ?? null) === null);
  there.sort((a, b) => (down ? values[b]! - values[a]! : values[a]! - values[b]!) || a - b);
  return [...there, ...missing];
}

function byFit(chosen: number[], found: Map<number, Match>, tokens: Tokens): number[] {
  const score = (place: number) => closeness(found.get(place)!, tokens.total[place]);
  const fires = (place: number) => found.get(place)!.fires ?? 0;
  return chosen.sort((a, b) => score(b) - score(a) || fires(b) - fires(a) || a - b);
}
