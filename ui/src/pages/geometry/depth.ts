// A measure over the sites of a family, as a figure by layer.

import * as Plot from "@observablehq/plot";
import type { Records } from "../../data/source";
import { options, type Chart, type Key, type Numbers, type Options, type Reading } from "../../lib/figures";
import { capital, known, qcell, qvalue, type Numeric } from "../../lib/format";
import { besideOf, between, colourOf, plain, titled } from "./words";

type Series = Records["Series"];

export interface Measure {
  key: string;
  title: string;
  read: string;
  headline: boolean;
  chart: Chart;
  sites: string[];
  series: Series;
  at: readonly number[];
}

// `at` are the places, among those of the series, of the sites of a family; `names` says how they are called there.
export function measureOf(series: Series, at: readonly number[], sites: readonly string[], names: readonly string[]): Measure | null {
  const pick = (values: Numeric[]): Numeric[] => at.map((n) => values[n] ?? null);
  const value = pick(series.value);
  if (!value.some(known)) return null;
  const bounds = [pick(series.lo), pick(series.hi)] as const;
  const ofControl = [pick(series.control_lo), pick(series.control_hi)] as const;
  const both = ([low, high]: readonly [Numeric[], Numeric[]]) => low.some((each, n) => known(each) && known(high[n]));
  const control = pick(series.control);
  const all = value.filter(known);
  const log = all.every((each) => each > 0) && Math.max(...all) > 40 * Math.min(...all);
  const chart: Chart = {
    x: [...names], xTitle: "layer", draw: "lines", log,
    series: [
      ...(both(ofControl) ? [{ name: "95 % of the control", colour: "var(--grey)", flat: true, values: at.map(() => null), low: ofControl[0], high: ofControl[1] }] : []),
      {
        name: series.label, colour: colourOf(series.subject), values: value, control: control.some(known) ? control : undefined,
        low: both(bounds) ? bounds[0] : undefined, high: both(bounds) ? bounds[1] : undefined,
      },
    ],
  };
  return {
    key: `${series.subject} ${series.stat}`, title: titled(series.label, series.subject), headline: series.headline, chart, sites: [...sites], series, at,
    read: `${series.meaning ? `${capital(series.meaning)}. ` : ""}${besideOf(series.control_kind)}${log ? " The scale is logarithmic." : ""}`,
  };
}

// The figure, with a line at the site that is looked at elsewhere on the page.
export function optionsOf({ chart, sites }: Measure, site: string, width: number, height: number): Options {
  const drawn = options(chart, width, height);
  const place = sites.indexOf(site);
  const mark = place < 0 ? [] : [Plot.ruleX([place], { stroke: "var(--faint)", strokeWidth: 1, strokeOpacity: 0.6 })];
  return { ...drawn, marks: [...mark, ...(drawn.marks ?? [])] };
}

export const keysOf = ({ chart, series }: Measure): Key[] => [
  { name: "value", colour: colourOf(series.subject) },
  ...(chart.series.at(-1)?.control ? [{ name: "control", colour: colourOf(series.subject), dashed: true }] : []),
  ...(chart.series.length > 1 ? [{ name: "95 % of the control", colour: "color-mix(in srgb, var(--grey) 35%, transparent)" }] : []),
];

export function readingsOf({ chart, sites, series, at }: Measure): Reading[] {
  return at.map((place, n) => {
    const interval = between(series.lo[place], series.hi[place]);
    const control = between(series.control_lo[place], series.control_hi[place]);
    const q = qvalue(series.q[place]);
    return {
      at: n, title: sites[n] ?? chart.x[n] ?? "",
      rows: [
        { swatch: colourOf(series.subject), name: "value", cells: [plain(series.value[place]), ...(interval ? [interval] : [])] },
        ...(known(series.control[place]) ? [{ name: "control", cells: [plain(series.control[place]), ...(control ? [control] : [])] }] : []),
        ...(q ? [{ name: "q", cells: [qcell(series.q[place])] }] : []),
      ],
    };
  });
}

export const numbersOf = ({ sites, series, at }: Measure): Numbers => ({
  heads: ["Site", "Value", "95 % interval", "Control", "95 % of the control", "q"],
  rows: at.map((place, n) => [
    sites[n] ?? "", plain(series.value[place]), between(series.lo[place], series.hi[place]), plain(series.control[place]),
    between(series.control_lo[place], series.control_hi[place]), qcell(series.q[place]),
  ]),
});
