// Numbers as places along an axis: by value, by rank, and spread out where many are the same.

export type Scale = "values" | "ranks";
export const SCALES: readonly (readonly [Scale, string])[] = [["values", "values"], ["ranks", "ranks"]];

// What is told along an axis, and how: ranks are shares from 0 to 1.
export interface Axis {
  name: string;
  by: Scale;
}

// Places in order of value, from 0 to 1; equal values share the middle of theirs.
export function ranks(values: Float32Array): Float32Array {
  const order = Uint32Array.from(values.keys()).sort((a, b) => values[a]! - values[b]!);
  const found = new Float32Array(values.length);
  for (let first = 0; first < order.length; ) {
    let last = first;
    while (last + 1 < order.length && values[order[last + 1]!] === values[order[first]!]) last += 1;
    for (let n = first; n <= last; n += 1) found[order[n]!] = (first + last) / 2 / Math.max(1, order.length - 1);
    first = last + 1;
  }
  return found;
}

// Whether a few values are so far off that the rest would be a dot.
function skewed(values: Float32Array): boolean {
  const sorted = values.slice().sort();
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]!;
  return sorted.length > 50 && at(0.99) - at(0.01) < 0.2 * (at(1) - at(0));
}

const FEW = 40;

// Two axes on which many points share values; turned by the plastic number's powers no two lie upon each other.
const TURNS = { across: 0.7548776662, upwards: 0.5698402909 } as const;

// Values that many units share, each moved a little within the gap to the next, so that one can see how many there are; null where
// values are not so few.
export function spread(values: Float32Array, axis: keyof typeof TURNS): Float32Array | null {
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length > FEW || distinct.length < 2 || values.length < 3 * distinct.length) return null;
  const gap = distinct.slice(1).reduce((least, value, n) => Math.min(least, value - distinct[n]!), Infinity);
  return values.map((value, n) => value + 0.7 * gap * (((n + 1) * TURNS[axis]) % 1) - 0.35 * gap);
}

// By which a plane of two numbers is drawn: what was asked for, or what fits them.
export const scaleOf = (asked: string | null, ...values: readonly Float32Array[]): Scale =>
  SCALES.find(([each]) => each === asked)?.[0] ?? (values.some(skewed) ? "ranks" : "values");
