// Files of an export: gzipped JSON, each fetched once. Some web servers unpack .gz on the way: the first two bytes tell.

import { problem } from "./source";

const KEPT = 400;
const kept = new Map<string, Promise<unknown>>();

export function shard<T>(path: string): Promise<T> {
  let found = kept.get(path);
  if (!found) {
    found = load(path).catch((error: unknown) => {
      kept.delete(path);
      throw error;
    });
    kept.set(path, found);
    if (kept.size > KEPT) for (const oldest of kept.keys()) { kept.delete(oldest); break; }
  }
  return found as Promise<T>;
}

async function load(path: string): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(`data/${path}.json.gz`);
  } catch {
    throw problem(
      "The data of this page",
      "it cannot be fetched; opened as a file a page may not read its own folder",
      "serve the folder with a web server, for example python3 -m http.server",
    );
  }
  if (!response.ok) {
    throw problem(`data/${path}.json.gz`, `the web server answered ${response.status}`, "copy the whole export folder to the server");
  }
  const bytes = await response.arrayBuffer();
  const head = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  if (head[0] !== 0x1f || head[1] !== 0x8b) return JSON.parse(new TextDecoder().decode(bytes));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

// The shards of one run.
export type Mine = <T>(path: string) => Promise<T>;

// A run is a folder by its number in the list of runs.
export async function folder(run: string): Promise<Mine> {
  const runs = await shard<string[]>("runs");
  const number = run ? runs.indexOf(run) : 0;
  if (number < 0) throw problem(`run ${run.slice(0, 80)}`, "this atlas has no run of that name", `choose one of ${runs.join(", ")}`);
  return (path) => shard(`${number}/${path}`);
}

// Where units are: runs of consecutive addresses.
export interface Group {
  prefix: string;
  basis: string;
  layer: number | null;
  place: number;
  number: number | null;
  count: number;
}

export interface Places {
  per: number;
  windows: number;
  tokens: number;
  piece: number;
  groups: Group[];
}

export const places = (): Promise<Places> => shard<Places>("places");

export function total({ groups }: Places): number {
  const last = groups.at(-1);
  return last ? last.place + last.count : 0;
}

export const address = (group: Group, place: number): string =>
  group.number === null ? group.prefix : `${group.prefix}${group.number + place - group.place}`;

export function groupAt({ groups }: Places, place: number): Group {
  let low = 0;
  let high = groups.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (groups[middle]!.place <= place) low = middle;
    else high = middle - 1;
  }
  return groups[low]!;
}

export function placeOf({ groups }: Places, unit: string): number {
  for (const group of groups) {
    if (!unit.startsWith(group.prefix)) continue;
    if (group.number === null && unit === group.prefix) return group.place;
    const rest = unit.slice(group.prefix.length);
    if (group.number === null || !/^(0|[1-9]\d*)$/.test(rest)) continue;
    const place = Number(rest) - group.number;
    if (place >= 0 && place < group.count) return group.place + place;
  }
  throw problem(`unit ${unit.slice(0, 80)}`, "this atlas has no unit of that address", "look for it in the unit browser");
}
