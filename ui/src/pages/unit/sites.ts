// Units that are seen at several sites: which there are, and what of the unit is said where.

import type { Records } from "../../data/source";
import type { Chart } from "../../lib/figures";
import { known } from "../../lib/format";

type Stat = Records["Stat"];
type Context = Records["Context"];
export type UnitPage = Records["UnitPage"];

// A context that is coloured by what the code is owed to, not by the code.
export const isOwed = (context: Context): boolean => context.end === "saliency";

const depth = (site: string): readonly [string, number] => {
  const [name = "", layer = ""] = site.split(".");
  return [name, /^\d+$/.test(layer) ? Number(layer) : -1];
};

// Sites by name, then by depth rather than by the letters of a number.
export function sorted(sites: Iterable<string>): string[] {
  return [...new Set(sites)].filter(Boolean).sort((a, b) => depth(a)[0].localeCompare(depth(b)[0]) || depth(a)[1] - depth(b)[1]);
}

// Sites that contexts are kept of, and the one where the unit is largest.
export function contextSites(contexts: readonly Context[]): { sites: string[]; largest: string } {
  const own = contexts.filter((each) => !isOwed(each));
  const sites = sorted(own.map((each) => each.site ?? ""));
  const largest = (site: string) => Math.max(...own.filter((each) => each.site === site).map((each) => each.value ?? -Infinity));
  return { sites, largest: [...sites].sort((a, b) => largest(b) - largest(a) || (a < b ? -1 : 1))[0] ?? "" };
}

// Statistics that are measured at more than one site, the most telling first.
export function profiled(unit: UnitPage): string[] {
  const names = [...new Set(unit.stats.map((each) => each.stat))].filter(
    (name) => sorted(unit.stats.filter((each) => each.stat === name).map((each) => each.site)).length > 1,
  );
  return names.sort((a, b) => Number(b === "importance") - Number(a === "importance"));
}

export interface Profile {
  sites: string[];
  chart: Chart;
  label: string;
  meaning: string;
  beside: string[];
}

// A statistic by site.
export function profile(unit: UnitPage, stat: string): Profile {
  const rows = unit.stats.filter((each) => each.stat === stat);
  const sites = sorted(rows.map((each) => each.site));
  const at = (key: "value" | "control" | "lo" | "hi") => sites.map((site) => rows.find((each) => each.site === site)?.[key] ?? null);
  const control = at("control");
  const low = at("lo");
  const oneFamily = new Set(sites.map((site) => depth(site)[0])).size === 1;
  return {
    sites, label: rows[0]?.label ?? stat, meaning: rows[0]?.meaning ?? "",
    beside: [...new Set(rows.flatMap((each) => each.control_kind ?? []))],
    chart: {
      x: oneFamily ? sites.map((site) => site.split(".")[1] ?? site) : sites, xTitle: oneFamily ? depth(sites[0] ?? "")[0] : "site", draw: "lines",
      series: [{
        name: (rows[0]?.label ?? stat).toLowerCase(), colour: "var(--blue)", values: at("value"), control: control.some(known) ? control : undefined,
        low: low.some(known) ? low : undefined, high: low.some(known) ? at("hi") : undefined,
      }],
    },
  };
}

// The statistics to show beside a site: those of that site, and those that are measured at one site only.
export function statsAt(unit: UnitPage, site: string): Stat[] {
  const many = new Set(profiled(unit));
  return unit.stats.filter((each) => !many.has(each.stat) || !site || each.site === site);
}
