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

// Points in the order in which they are drawn: those that differ surely lie above the others.
export const drawn = (clear: Int8Array): Uint32Array => {
  const all = Array.from(clear.keys());
  return Uint32Array.from([...all.filter((n) => clear[n] !== 1), ...all.filter((n) => clear[n] === 1)]);
};
