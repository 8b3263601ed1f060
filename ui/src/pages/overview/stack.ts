// All layers as rows: what their units are called, their loss, what their hidden states are made of.

import type { Answer, Records } from "../../data/source";
import { CATEGORIES } from "../../lib/colours";
import type { Key } from "../../lib/figures";
import { spoken } from "../../lib/labels";
import { known, type Numeric } from "../../lib/format";
import { PARTS } from "./charts";

type Overview = Answer<"overview">;

export interface Part {
  name: string;
  colour: string;
  share: number;
  // its units; 0 where it is none of units
  units: number;
  // the label that its units are found by
  label: string;
}

export interface Row {
  // none: units that belong to no layer
  layer: number | null;
  name: string;
  units: number;
  parts: Part[];
  others: { basis: string; label: string; units: number }[];
  loss: Numeric;
  control: Numeric;
  shares: Part[];
  // whether a dictionary reads the stream here
  read: boolean;
}

export interface Stack {
  basis: string;
  rows: Row[];
  keys: Key[];
  shareKeys: Key[];
  // the end of the scale of losses
  most: number;
}

// Classes with a colour of their own.
const OWN = 6;

// Ways to tell units apart: kinds of labels that have few texts, then all kinds beside each other.
export function kindsOf(overview: Overview, basis: string): string[] {
  const mine = overview.labels.filter((each) => each.basis === basis);
  const few = [...new Set(mine.filter((each) => each.text !== null).map((each) => each.kind))];
  return [...few.sort((a, b) => Number(b === "role") - Number(a === "role")), ...(new Set(mine.map((each) => each.kind)).size ? ["any"] : [])];
}

export function basesOf(overview: Overview): string[] {
  const all = new Map<string, number>();
  for (const each of overview.units) all.set(each.basis, (all.get(each.basis) ?? 0) + each.labelled + (each.layer === null ? 0 : 1e-6 * each.units));
  return [...all].sort((a, b) => b[1] - a[1]).map(([basis]) => basis);
}

export function stackOf(overview: Overview, layers: Answer<"layers">, basis: string, kind: string): Stack {
  const classes = classesOf(overview, basis, kind);
  const numbers = new Set<number>(overview.units.flatMap((each) => each.layer ?? []));
  for (let n = 0; n < (overview.shape.layers ?? 0); n += 1) numbers.add(n);
  const order: (number | null)[] = [...[...numbers].sort((a, b) => a - b), ...(overview.units.some((each) => each.layer === null && each.basis === basis) ? [null] : [])];
  const objective = layers.losses.find((each) => each.site?.startsWith("resid_post"))?.objective;
  const loss = (layer: number | null) => layers.losses.find((each) => each.objective === objective && each.layer === layer && each.site?.startsWith("resid_post"));
  const parts = ["pos", "ctx", "resid"].filter((part) => layers.shares.some((each) => each.part === part));
  const all = layers.losses.flatMap((each) => [each.loss, each.control]).filter(known);
  return {
    basis,
    keys: classes.map(({ name, colour }) => ({ name, colour })),
    shareKeys: parts.map((part) => PARTS[part]!),
    most: Math.max(1, ...all),
    rows: order.map((layer) => {
      const here = overview.units.filter((each) => each.layer === layer);
      const units = here.find((each) => each.basis === basis)?.units ?? 0;
      const at = layer === null ? [] : layers.shares.filter((each) => each.site === `resid_post.${layer}`);
      return {
        layer, units, name: layer === null ? "all" : String(layer),
        parts: partsOf(overview, classes, basis, kind, layer, units),
        others: here.filter((each) => each.basis !== basis).map(({ basis, label, units }) => ({ basis, label, units })),
        loss: layer === null ? null : loss(layer)?.loss, control: layer === null ? null : loss(layer)?.control,
        shares: parts.flatMap((part): Part[] => {
          const share = at.find((each) => each.part === part)?.share;
          return known(share) ? [{ ...PARTS[part]!, share, units: 0, label: "" }] : [];
        }),
        read: overview.sites.some((each) => each.layer === layer && layer !== null && each.tables.includes("dictionaries")),
      };
    }),
  };
}

interface Class {
  name: string;
  colour: string;
  label: string;
  rest: boolean;
}

// The commonest classes; the others are one.
function classesOf(overview: Overview, basis: string, kind: string): Class[] {
  const sums = new Map<string, number>();
  for (const each of overview.labels) {
    const label = kind === "any" ? each.kind : (each.text ?? "");
    if (each.basis !== basis || (kind === "any" ? each.text !== null : each.kind !== kind || each.text === null)) continue;
    sums.set(label, (sums.get(label) ?? 0) + each.units);
  }
  const ranked = [...sums].sort((a, b) => b[1] - a[1]).map(([label]) => label);
  const own = ranked.slice(0, OWN).map((label, n): Class => ({ name: spoken(kind, label), label, colour: CATEGORIES[n]!, rest: false }));
  return ranked.length > OWN ? [...own, { name: "another", label: kind === "any" ? "" : kind, colour: "var(--grey)", rest: true }] : own;
}

function partsOf(overview: Overview, classes: readonly Class[], basis: string, kind: string, layer: number | null, units: number): Part[] {
  const here = overview.labels.filter(
    (each) => each.basis === basis && each.layer === layer && (kind === "any" ? each.text === null : each.kind === kind && each.text !== null),
  );
  const named = (each: Records["LayerLabels"]) => (kind === "any" ? each.kind : (each.text ?? ""));
  const own = new Set(classes.filter((each) => !each.rest).map((each) => each.label));
  const sums = classes.map((each) =>
    here.filter((row) => (each.rest ? !own.has(named(row)) : named(row) === each.label)).reduce((sum, row) => sum + row.units, 0),
  );
  // a unit may have several labels: what is drawn then is of all labels, not of all units
  const whole = Math.max(units, sums.reduce((sum, each) => sum + each, 0), 1);
  return classes.flatMap((each, n) => (sums[n] ? [{ name: each.name, colour: each.colour, label: each.label, units: sums[n], share: sums[n] / whole }] : []));
}
