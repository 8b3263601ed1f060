// Singular values by rank on two logarithmic scales, with a mark at the rank that stands out of the noise.

import * as Plot from "@observablehq/plot";
import type { Key, Numbers, Options, Reading } from "../../lib/figures";
import { count, known, number } from "../../lib/format";
import type { Site } from "./sites";
import { colourOf, subjectOf } from "./words";

const MARK = "screenot_rank";
const NOISE = " noise";

interface Line {
  subject: string;
  name: string;
  colour: string;
  dashed: boolean;
  points: { rank: number; value: number }[];
  of: number;
  mark: number | null;
}

// Ranks are counted from 1; values that are not above zero have no place on the scale.
export function linesOf(site: Site): Line[] {
  return site.spectra.map(({ subject, rank, value, of }) => ({
    subject, of, name: subjectOf(subject), colour: colourOf(subject), dashed: subject.endsWith(NOISE),
    points: rank.flatMap((each, n) => (known(value[n]) ? [{ rank: each + 1, value: value[n] }] : [])),
    mark: site.stats.find((each) => each.subject === subject && each.stat === MARK)?.value ?? null,
  }));
}

// What is a billionth of the largest is nothing but the last digit of a sum.
const drawn = (line: Line) => {
  const top = Math.max(...line.points.map((point) => point.value));
  return line.points.filter((point) => point.value > 1e-6 * top);
};

export function optionsOf(lines: readonly Line[], width: number, height: number): Options {
  const all = lines.flatMap(drawn);
  const most = Math.max(2, ...all.map((point) => point.rank));
  const marks = lines.filter((line) => line.mark && !line.dashed);
  const ticks = (low: number, high: number) => {
    const powers = Array.from({ length: 40 }, (_, n) => 10 ** (n - 20)).filter((each) => each >= low * 0.999 && each <= high * 1.001);
    return powers.length > 1 ? powers : [low, high];
  };
  const [low, high] = [Math.min(...all.map((point) => point.value)), Math.max(...all.map((point) => point.value))];
  return {
    width, height, marginLeft: 52, marginRight: 14, marginTop: 14, marginBottom: 38, className: "plot",
    x: { type: "log", domain: [1, most] }, y: { type: "log", domain: [low, high > low ? high : 2 * low], clamp: true },
    marks: [
      Plot.gridY({ className: "gridline", stroke: "var(--hair)", strokeOpacity: 1, ticks: ticks(low, high) }),
      Plot.axisX({ ticks: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((each) => each <= most), tickFormat: (value: number) => count(value), tickSize: 0, tickPadding: 8, label: null }),
      Plot.axisY({ ticks: ticks(low, high), tickFormat: (value: number) => number(value, 1), tickSize: 0, tickPadding: 6, label: null }),
      Plot.text(["rank"], { frameAnchor: "bottom", dy: 36, fill: "var(--faint)", className: "axisname" }),
      Plot.ruleX(marks, { x: (line: Line) => line.mark! + 0.5, stroke: (line: Line) => line.colour, strokeWidth: 1.2, strokeDasharray: "2 3" }),
      ...lines.flatMap((line) => [
        Plot.lineY(drawn(line), { x: "rank", y: "value", stroke: line.colour, strokeWidth: line.dashed ? 1.4 : 2, ...(line.dashed ? { strokeDasharray: "4 4" } : {}) }),
        ...(line.dashed ? [] : [Plot.dot(drawn(line).filter((point) => point.rank <= (line.mark ?? 0)), { x: "rank", y: "value", r: 2.6, fill: line.colour, stroke: "var(--panel)", strokeWidth: 1 })]),
      ]),
    ],
  };
}

const ranks = (lines: readonly Line[]): number[] => [...new Set(lines.flatMap((line) => line.points.map((point) => point.rank)))].sort((a, b) => a - b);

const valueAt = (line: Line, rank: number): number | null => line.points.find((point) => point.rank === rank)?.value ?? null;

export const readingsOf = (lines: readonly Line[]): Reading[] =>
  ranks(lines).map((rank) => ({ at: rank, title: `rank ${rank}`, rows: lines.map((line) => ({ swatch: line.colour, name: line.name, cells: [number(valueAt(line, rank))] })) }));

export const numbersOf = (lines: readonly Line[]): Numbers => ({
  heads: ["Rank", ...lines.map((line) => line.name)],
  rows: ranks(lines).map((rank) => [String(rank), ...lines.map((line) => number(valueAt(line, rank)))]),
});

export const keysOf = (lines: readonly Line[]): Key[] =>
  lines.map((line) => ({ name: line.mark && !line.dashed ? `${line.name}, rank ${count(line.mark)}` : line.name, colour: line.colour, dashed: line.dashed }));
