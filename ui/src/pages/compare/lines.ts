// Two runs over depth: a line for each, in the colours of the runs, its control dashed.

import type { Records } from "../../data/source";
import type { Chart, Series } from "../../lib/figures";
import { capital, known, percent, type Numeric } from "../../lib/format";
import { short } from "../geometry/sites";
import { titled } from "../geometry/words";
import { PARTS } from "../overview/charts";
import { ONE, OTHER, type Compared } from "./asked";

export interface Drawing {
  title: string;
  read: string;
  chart: Chart;
}

type Row = { value: Numeric[]; control: Numeric[]; lo: Numeric[]; hi: Numeric[] };

const layerOf = (site: string): number | null => (/\.\d+$/.test(site) ? Number(site.slice(site.lastIndexOf(".") + 1)) : null);
const shortOf = (site: string): string => short({ site, layer: layerOf(site), tables: [] });

// The sites of the largest family, with what enters the first layer and what follows the last.
export function family(sites: readonly string[]): string[] {
  const name = (site: string) => site.split(".")[0]!;
  const names = [...new Set(sites.map(name))];
  const many = names.filter((each) => sites.filter((site) => name(site) === each).length > 1);
  const main = many.find((each) => each === "resid_post") ?? many[0];
  return main ? sites.filter((site) => name(site) === main || !many.includes(name(site))) : [...sites];
}

function chart(sites: readonly string[], names: readonly [string, string], rows: readonly [Row, Row], format?: Chart["format"]): Chart | null {
  const lines = rows.map((row, n): Series => ({
    name: names[n]!, colour: n ? OTHER : ONE, values: row.value,
    control: row.control.some(known) ? row.control : undefined,
    low: row.lo.some(known) && row.hi.some(known) ? row.lo : undefined, high: row.lo.some(known) && row.hi.some(known) ? row.hi : undefined,
  }));
  const there = lines.filter((line) => line.values.some(known));
  if (!there.length) return null;
  const all = there.flatMap((line) => line.values).filter(known);
  const log = !format && all.every((each) => each > 0) && Math.max(...all) > 40 * Math.min(...all);
  return { x: sites.map(shortOf), xTitle: "layer", series: there, draw: "lines", log, ...(format ? { format } : {}) };
}

const found = <R>(rows: readonly R[], sites: readonly string[], site: (row: R) => string | null, of: (row: R) => Numeric): Numeric[] =>
  sites.map((each) => {
    const row = rows.find((one) => site(one) === each);
    return row ? of(row) : null;
  });

export function shares({ shares: both, sites }: Compared, names: readonly [string, string]): Drawing[] {
  const kept = family(sites.filter((site) => both.some((rows) => rows.some((row) => row.site === site))));
  const parts = Object.keys(PARTS).filter((part) => both.some((rows) => rows.some((row) => row.part === part)));
  return parts.flatMap((part) => {
    const rows = both.map((all) => {
      const mine = all.filter((row) => row.part === part);
      const of = (pick: (row: Records["Share"]) => Numeric) => found(mine, kept, (row) => row.site, pick);
      return { value: of((row) => row.share), control: of((row) => row.control), lo: of((row) => row.lo), hi: of((row) => row.hi) };
    }) as [Row, Row];
    const drawn = chart(kept, names, rows, (value) => percent(value, 0));
    const kinds = [...new Set(both.flatMap((all) => all.filter((row) => row.part === part).map((row) => row.control_kind)).filter(Boolean))];
    const read = part === "mu" ? "The share of one constant vector in the squared length of hidden states." : `The share of the ${PARTS[part]!.name} part in the variance of hidden states${kinds.length ? `; dashed: ${kinds.join(", ")}` : ""}.`;
    return drawn ? [{ title: `Share of the ${PARTS[part]!.name}`, read, chart: drawn }] : [];
  });
}

export function losses({ losses: both }: Compared, names: readonly [string, string]): Drawing[] {
  const objectives = [...new Set(both.flatMap((rows) => rows.filter((row) => row.site).map((row) => row.objective)))];
  return objectives.flatMap((objective) => {
    const mine = both.map((rows) => rows.filter((row) => row.objective === objective && row.site));
    const longest = mine[0]!.length >= mine[1]!.length ? mine[0]! : mine[1]!;
    const sites = [...new Set(longest.map((row) => row.site!))].sort((a, b) => depth(a) - depth(b));
    const rows = mine.map((all) => {
      const of = (pick: (row: Records["Loss"]) => Numeric) => found(all, sites, (row) => row.site, pick);
      return { value: of((row) => row.loss), control: of((row) => row.control), lo: of((row) => row.lo), hi: of((row) => row.hi) };
    }) as [Row, Row];
    const drawn = chart(sites, names, rows);
    return drawn ? [{ title: `Loss by layer, ${objective.replaceAll("_", " ")}`, read: "Nats per token if the model stopped after a layer and its own head read the stream there; lower is better.", chart: drawn }] : [];
  });
}

const depth = (site: string): number => {
  if (site === "embed" || site === "resid_pre.0") return -1;
  return layerOf(site) ?? 1e9;
};

// Measures of hidden states that both have, headlines first.
export function measures({ measures: all, sites }: Compared, names: readonly [string, string]): (Drawing & { headline: boolean })[] {
  const kept = family(sites);
  const at = kept.map((site) => sites.indexOf(site));
  const pick = (values: Numeric[]) => at.map((n) => values[n] ?? null);
  return all.flatMap((each) => {
    const rows = [each.one, each.other].map((row) => ({ value: pick(row.value), control: pick(row.control), lo: pick(row.lo), hi: pick(row.hi) })) as [Row, Row];
    const drawn = chart(kept, names, rows);
    const kind = each.one.control_kind ?? each.other.control_kind;
    return drawn ? [{ title: titled(each.label, each.subject), headline: each.headline, chart: drawn, read: `${each.meaning ? `${capital(each.meaning)}. ` : ""}${kind ? `Dashed: ${kind}.` : "It has no control."}${drawn.log ? " The scale is logarithmic." : ""}` }] : [];
  });
}

