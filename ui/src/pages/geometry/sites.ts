// Sites in families that a slider runs through, and what is told of each: asked for once, and kept while the page is open.

import type { Answer, Records } from "../../data/source";
import type { Asking } from "../../pages";

export type Site = Answer<"geometry_site">;
export type SiteTables = Records["SiteTables"];

export interface Family {
  name: string;
  sites: readonly SiteTables[];
}

export const VIEWS = ["position", "context", "depth", "attention"] as const;
export type View = (typeof VIEWS)[number];

export const viewOf = (parameters: URLSearchParams): View => VIEWS.find((each) => each === parameters.get("view")) ?? "position";

const familyOf = (site: string): string => site.split(".")[0] ?? site;

// What enters the first layer and what follows the last stand with the stream between them.
export function families(sites: readonly SiteTables[]): Family[] {
  const names = [...new Set(sites.map((each) => familyOf(each.site)))];
  const many = names.filter((name) => sites.filter((each) => familyOf(each.site) === name).length > 1);
  if (!many.length) return sites.length ? [{ name: names.join(", "), sites }] : [];
  const main = many.find((name) => name === "resid_post") ?? many[0]!;
  return [main, ...many.filter((name) => name !== main)].map((name) => ({
    name,
    sites: sites.filter(({ site }) => familyOf(site) === name || (name === main && !many.includes(familyOf(site)))),
  }));
}

export const short = ({ site, layer }: SiteTables): string => {
  if (site === "embed" || site === "resid_pre.0") return "in";
  return layer === null ? "end" : String(layer);
};

// The site that is asked for; else the middle of those that say most.
export function chosenOf(sites: readonly SiteTables[], asked: string | null): string {
  const found = sites.find((each) => each.site === asked);
  if (found) return found.site;
  const first = families(sites)[0]?.sites ?? [];
  const most = Math.max(0, ...first.map((each) => each.tables.length));
  const rich = first.filter((each) => each.tables.length === most);
  return rich[Math.floor(rich.length / 2)]?.site ?? "";
}

const KEPT = 24;
const kept = new WeakMap<Records["Summary"], Map<string, Promise<Site>>>();

export function siteOf({ source, summary }: Asking, site: string): Promise<Site> {
  const mine = kept.get(summary) ?? new Map<string, Promise<Site>>();
  kept.set(summary, mine);
  const known = mine.get(site);
  if (known) return known;
  const asked = source.get("geometry_site", { site });
  mine.set(site, asked);
  asked.catch(() => mine.delete(site));
  if (mine.size > KEPT) for (const oldest of mine.keys()) { mine.delete(oldest); break; }
  return asked;
}

// Why the run lacks something, with the command that adds it in code type.
export function absence(summary: Records["Summary"], what: string): string {
  const why = summary.absent.find((each) => each.what === what)?.why;
  return why ? why.replace(/\bmicrotome .*$/, "`$&`") : "`microtome geometry MODEL TEXT -o ATLAS` adds it";
}
