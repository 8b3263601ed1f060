// The colours of windows on the map of contexts: a label, a cluster, a document or a length.

import type { Colouring } from "../../lib/scatter_colours";
import { known } from "../../lib/format";
import type { Site } from "./sites";

export type ContextMap = NonNullable<Site["map"]>;
export type By = "label" | "cluster" | "document" | "norm";

// as many as there are colours besides grey
const MOST = 7;

export const choices = (map: ContextMap): By[] => [
  ...(map.labels.length ? ["label" as const] : []),
  ...(map.cluster.some(known) ? ["cluster" as const] : []),
  ...(map.documents.length ? ["document" as const] : []),
  ...(map.norm.some(known) ? ["norm" as const] : []),
];

// Windows that have a place.
export const placed = (map: ContextMap): number[] => map.window.map((_, n) => n).filter((n) => known(map.x[n]) && known(map.y[n]));

// The categories with most windows each have a colour, the rest share one.
function categories(of: readonly (number | null)[], name: (n: number) => string): Colouring {
  const sizes = new Map<number, number>();
  for (const each of of) if (known(each) && each >= 0) sizes.set(each, (sizes.get(each) ?? 0) + 1);
  const order = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([each]) => each);
  const own = order.slice(0, MOST).sort((a, b) => a - b);
  const rest = order.length - own.length;
  const place = new Map(own.map((each, n) => [each, n]));
  const grey = of.some((each) => !known(each) || !place.has(each));
  const left = rest ? `${rest} others` : "none";
  return {
    kind: "categories", of: Uint8Array.from(of, (each) => (known(each) ? place.get(each) : undefined) ?? own.length),
    names: [...own.map(name), ...(grey ? [left] : [])],
    colours: [...["blue", "orange", "green", "purple", "vermilion", "sky", "olive"].slice(0, own.length).map((each) => `var(--${each})`), "var(--grey)"],
  };
}

export function colouringOf(map: ContextMap, by: By, windows: readonly number[]): Colouring {
  if (by === "label") return categories(windows.map((n) => map.label[n]!), (n) => map.labels[n]!);
  if (by === "cluster") return categories(windows.map((n) => map.cluster[n] ?? null), (n) => `cluster ${n}`);
  if (by === "document") return categories(windows.map((n) => map.document[n]!), (n) => map.documents[n]!);
  const norms = Float32Array.from(windows, (n) => map.norm[n] ?? NaN);
  const there = norms.filter(Number.isFinite);
  return { kind: "sequential", of: norms, name: "length of the context part", low: Math.min(...there), high: Math.max(...there) };
}
