// Figures as Observable Plot draws them: what a series is, and the marks of those by layer.

import * as Plot from "@observablehq/plot";
import { known, number, tick, type Numeric } from "./format";
import type { TipRow } from "./tip.svelte";

export type Options = Plot.PlotOptions;

// What is told at one place of the horizontal axis; `at` is its value there.
export interface Reading {
  at: number;
  title: string;
  rows: TipRow[];
}

export interface Numbers {
  heads: string[];
  rows: string[][];
}

export interface Key {
  name: string;
  colour: string;
  dashed?: boolean;
}

// One line, or one part of a stack: a value for each label of the horizontal axis.
export interface Series {
  name: string;
  colour: string;
  values: Numeric[];
  control?: Numeric[] | undefined;
  low?: Numeric[] | undefined;
  high?: Numeric[] | undefined;
  // a level: a line without dots
  flat?: boolean;
}

export interface Chart {
  x: string[];
  xTitle: string;
  series: Series[];
  draw: "lines" | "stacked";
  log?: boolean;
  format?: (value: Numeric) => string;
}

const shown = (value: Numeric, log: boolean): number => (known(value) && (!log || value > 0) ? value : NaN);

export const controlled = ({ series }: Chart): boolean => series.some((each) => each.control?.some(known));

export function options(chart: Chart, width: number, height: number): Options {
  const { x, xTitle, draw, log = false, format = number } = chart;
  const places = x.map((_, i) => i);
  const left = 46;
  const step = (width - left - 12) / x.length;
  const longest = Math.max(...x.map((label) => label.length));
  const every = Math.max(1, Math.ceil((longest * 6.6 + 10) / step));
  const label = (i: number) => x[i] ?? "";
  const domain: [number, number] = draw === "stacked" ? [0, Math.max(1, ...places.map((i) => summed(chart, i)))] : extent(chart);
  const ticks = log ? logTicks(domain) : 5;
  return {
    width, height, marginLeft: left, marginRight: 12, marginTop: 10, marginBottom: 36, className: "plot",
    x: { type: draw === "stacked" ? "band" : "point", domain: places, padding: draw === "stacked" ? (step > 40 ? 0.4 : 0.18) : 0.5 },
    y: { type: log ? "log" : "linear", domain, nice: !log },
    marks: [
      Plot.gridY({ className: "gridline", stroke: "var(--hair)", strokeOpacity: 1, ticks }),
      Plot.axisX({ ticks: places.filter((i) => i % every === 0), tickFormat: label, tickSize: 0, tickPadding: 8, label: null }),
      Plot.axisY({ ticks, tickSize: 0, tickPadding: 6, label: null, tickFormat: format === number ? tick : (value: number) => format(value).replace(/\.0+(?!\d)/, "") }),
      Plot.text([xTitle], { frameAnchor: "bottom", dy: 34, fill: "var(--faint)", className: "axisname" }),
      ...(draw === "stacked" ? stacked(chart) : lines(chart)),
    ],
  };
}

// Few enough to be read: powers of ten, with what is between where there are few of them.
function logTicks([low, high]: [number, number]): number[] {
  const between = high / low > 300 ? [1] : high / low > 12 ? [1, 3] : [1, 2, 5];
  const first = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, n) => 10 ** (first + n));
  const inside = powers.flatMap((power) => between.map((each) => each * power)).filter((each) => each >= low * 0.999 && each <= high * 1.001);
  return inside.length ? inside : [low, high];
}

const summed = ({ series }: Chart, i: number): number => series.reduce((sum, each) => sum + Math.max(0, each.values[i] ?? 0), 0);

function stacked({ x, series }: Chart): Plot.Markish[] {
  const marks: Plot.Markish[] = [];
  const base = x.map(() => 0);
  for (const each of series) {
    const below = [...base];
    x.forEach((_, i) => (base[i] = below[i]! + Math.max(0, each.values[i] ?? 0)));
    const above = [...base];
    const rows = x.map((_, i) => i);
    marks.push(Plot.barY(rows, { x: (i: number) => i, y1: (i: number) => below[i]!, y2: (i: number) => above[i]!, fill: each.colour, insetTop: 0.5, insetBottom: 0.5 }));
    const marked = rows.filter((i) => known(each.control?.[i]));
    marks.push(Plot.tickY(marked, { x: (i: number) => i, y: (i: number) => below[i]! + Math.max(0, each.control![i]!), stroke: "var(--ink)", strokeWidth: 1.6, strokeDasharray: "3 2" }));
  }
  return marks;
}

function lines({ x, series, log = false }: Chart): Plot.Markish[] {
  const rows = x.map((_, i) => i);
  const of = (values: Numeric[] | undefined) => (i: number) => shown(values?.[i], log);
  const at = (i: number) => i;
  const bands = series.filter((each) => each.low && each.high);
  return [
    ...bands.map((each) => Plot.areaY(rows, { x: at, y1: of(each.low), y2: of(each.high), fill: each.colour, fillOpacity: 0.17 })),
    ...series.flatMap((each) => [
      ...(each.control ? [Plot.lineY(rows, { x: at, y: of(each.control), stroke: each.colour, strokeWidth: 1.4, strokeDasharray: "4 4" })] : []),
      Plot.lineY(rows, { x: at, y: of(each.values), stroke: each.colour, strokeWidth: 2, strokeLinejoin: "round" }),
      ...(x.length <= 60 && !each.flat ? [Plot.dot(rows.filter((i) => Number.isFinite(of(each.values)(i))), { x: at, y: of(each.values), r: x.length > 34 ? 2 : 2.8, fill: each.colour, stroke: "var(--panel)", strokeWidth: 1 })] : []),
    ]),
  ];
}

function extent({ series, log = false }: Chart): [number, number] {
  const all = series.flatMap((each) => [each.values, each.control, each.low, each.high].flatMap((values) => values ?? [])).filter(known);
  const there = log ? all.filter((value) => value > 0) : all;
  if (!there.length) return log ? [1, 10] : [0, 1];
  const low = Math.min(...there);
  let high = Math.max(...there);
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  if (log) return [low, high];
  return [low >= 0 && low < 0.6 * high ? 0 : low, high <= 0 ? 0 : high];
}

// What is told at each label.
export function readings(chart: Chart): Reading[] {
  const { x, xTitle, series, format = number } = chart;
  const controls = controlled(chart);
  return x.map((label, i) => ({
    at: i,
    title: `${xTitle} ${label}`,
    rows: [...series].reverse().map((each) => ({
      swatch: each.colour, name: each.name,
      cells: [
        format(each.values[i]), ...(controls ? [each.control ? format(each.control[i]) : ""] : []),
        ...(each.low && each.high ? [`${format(each.low[i])} to ${format(each.high[i])}`] : []),
      ],
    })),
  }));
}

export function numbers({ x, xTitle, series, format = number }: Chart): Numbers {
  const pick = <T>(own: (each: Series) => T, control: (each: Series) => T) =>
    series.flatMap((each) => (each.control ? [own(each), control(each)] : [own(each)]));
  return {
    heads: [xTitle, ...pick((each) => each.name, (each) => `${each.name}, control`)],
    rows: x.map((label, i) => [label, ...pick((each) => format(each.values[i]), (each) => format(each.control?.[i]))]),
  };
}

export function describe({ x, xTitle, series, format = number }: Chart): string {
  const ends = series.map((each) => `${each.name} from ${format(each.values[0])} to ${format(each.values.at(-1))}`);
  return `Chart by ${xTitle}, ${x[0]} to ${x.at(-1)}: ${ends.join("; ")}. Arrow keys read single values.`;
}

export const keys = (chart: Chart): Key[] => [
  ...chart.series.map(({ name, colour }) => ({ name, colour })),
  ...(controlled(chart) ? [{ name: "control", colour: "var(--ink)", dashed: true }] : []),
];
