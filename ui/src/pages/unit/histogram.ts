// How often a unit is how active, as a figure: bins of one width, and what lies beyond them.

import * as Plot from "@observablehq/plot";
import type { Records } from "../../data/source";
import type { Numbers, Options, Reading } from "../../lib/figures";
import { brief, count, plural, tick } from "../../lib/format";

export type Histogram = Records["Histogram"];

interface Bin {
  from: number;
  to: number;
  count: number;
}

export const binsOf = ({ low, high, counts }: Histogram): Bin[] => {
  const inner = counts.slice(1, -1);
  const width = (high - low) / inner.length;
  return inner.map((count, n) => ({ from: low + n * width, to: low + (n + 1) * width, count }));
};

const range = ({ from, to }: Bin): string => `${brief(from)} to ${brief(to)}`;
const beyond = ({ counts }: Histogram): [number, number] => [counts[0] ?? 0, counts.at(-1) ?? 0];
const total = ({ counts }: Histogram): number => counts.reduce((sum, each) => sum + each, 0);

export function options(histogram: Histogram, width: number, height: number): Options {
  const bins = binsOf(histogram);
  return {
    width, height, marginLeft: 46, marginRight: 12, marginTop: 10, marginBottom: 36, className: "plot",
    x: { domain: [histogram.low, histogram.high] },
    y: { type: "sqrt", domain: [0, Math.max(1, ...bins.map((bin) => bin.count))], nice: true },
    marks: [
      Plot.gridY({ className: "gridline", stroke: "var(--hair)", strokeOpacity: 1, ticks: 4 }),
      Plot.rectY(bins, { x1: "from", x2: "to", y: "count", fill: "var(--blue)", insetLeft: 0.4, insetRight: 0.4 }),
      ...(histogram.low < 0 && histogram.high > 0 ? [Plot.ruleX([0], { stroke: "var(--faint)", strokeDasharray: "3 3" })] : []),
      Plot.axisX({ ticks: 6, tickSize: 0, tickPadding: 8, label: null, tickFormat: tick }),
      Plot.axisY({ ticks: 4, tickSize: 0, tickPadding: 6, label: null, tickFormat: (value: number) => count(value) }),
      Plot.text(["activation"], { frameAnchor: "bottom", dy: 34, fill: "var(--faint)", className: "axisname" }),
    ],
  };
}

export const readings = (histogram: Histogram): Reading[] =>
  binsOf(histogram).map((bin) => ({ at: (bin.from + bin.to) / 2, title: range(bin), rows: [{ name: "tokens", cells: [count(bin.count)] }] }));

export function numbers(histogram: Histogram): Numbers {
  const [below, above] = beyond(histogram);
  const rows = binsOf(histogram).map((bin) => [range(bin), count(bin.count)]);
  return { heads: ["Activation", "Tokens"], rows: [[`below ${brief(histogram.low)}`, count(below)], ...rows, [`above ${brief(histogram.high)}`, count(above)]] };
}

export function reading(histogram: Histogram, active: boolean): string {
  const [below, above] = beyond(histogram);
  const left = [[below, "below"], [above, "above"]].filter(([times]) => times).map(([times, side]) => `${count(times as number)} ${side}`);
  const of = active ? `the sampled tokens at which it is active (${count(total(histogram))})` : plural(total(histogram), "sampled token");
  return `Of ${of}, how many have which activation; heights are on a square-root scale.${left.length ? ` Out of the picture: ${left.join(", ")}.` : ""}`;
}

export function describe(histogram: Histogram): string {
  const bins = binsOf(histogram);
  const highest = bins.reduce((best, bin) => (bin.count > best.count ? bin : best), bins[0]!);
  return `Histogram of the activation over ${plural(total(histogram), "token")}, from ${brief(histogram.low)} to ${brief(histogram.high)}: most are from ${range(highest)}. Arrow keys read single bins.`;
}
