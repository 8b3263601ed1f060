// A point for each unit that has a statistic in both runs.

import type { Answer } from "../../data/source";
import { codes, floats, wholes } from "../units/packed";

export interface Points {
  x: Float32Array;
  y: Float32Array;
  clear: Int8Array;
  unit: (point: number) => string;
  layer: (point: number) => number | null;
}

export function pointsOf(told: Answer<"scatter">): Points {
  const number = wholes(told.number);
  const starts: number[] = [];
  let at = 0;
  for (const group of told.groups) {
    starts.push(at);
    at += group.count;
  }
  const groupOf = (point: number) => {
    let [low, high] = [0, starts.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle]! <= point) low = middle;
      else high = middle - 1;
    }
    return told.groups[low]!;
  };
  return {
    x: floats(told.x), y: floats(told.y), clear: codes(told.clear),
    unit: (point) => `${groupOf(point).prefix}${number[point]! < 0 ? "" : number[point]}`,
    layer: (point) => groupOf(point).layer,
  };
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
export function skewed(values: Float32Array): boolean {
  const sorted = values.slice().sort();
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]!;
  return sorted.length > 50 && at(0.99) - at(0.01) < 0.2 * (at(1) - at(0));
}

const FEW = 40;

// Values that many units share, each moved a little within the gap to the next, so that one can see how many there are; null where
// values are not so few.
export function spread(values: Float32Array, turn: number): Float32Array | null {
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length > FEW || distinct.length < 2 || values.length < 3 * distinct.length) return null;
  const gap = distinct.slice(1).reduce((least, value, n) => Math.min(least, value - distinct[n]!), Infinity);
  return values.map((value, n) => value + 0.7 * gap * (((n + 1) * turn) % 1) - 0.35 * gap);
}

// Points in the order in which they are drawn: those that differ surely lie above the others.
export const drawn = (clear: Int8Array): Uint32Array => {
  const all = Array.from(clear.keys());
  return Uint32Array.from([...all.filter((n) => clear[n] !== 1), ...all.filter((n) => clear[n] === 1)]);
};
