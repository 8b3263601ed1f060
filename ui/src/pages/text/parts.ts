// The parts of a state by layer, and which number of theirs is shown.

import type { Records } from "../../data/source";
import { known } from "../../lib/format";

type Parts = Records["TextParts"];
export type Part = Records["ShownPart"];

export const MEASURES = { logit: "its logit", above: "its logit, above the mean of all tokens", share: "share of the state’s length" } as const;
export type Measure = keyof typeof MEASURES;

export function valueOf(part: Part, measure: Measure): number {
  if (measure === "share") return part.share ?? NaN;
  if (!known(part.logit)) return NaN;
  return measure === "logit" ? part.logit : part.logit - (part.mean ?? 0);
}

export interface Layer {
  layer: number;
  attention: number;
  forward: number;
}

export interface Opened {
  layer: number;
  heads: Part[];
  neurons: Part[];
  // of each block: other units and its bias
  rests: { heads: Part | null; neurons: Part | null };
}

export interface Sorted {
  layers: Layer[];
  opened: Opened | null;
  // what no layer wrote: the embedding first, then biases and what rounding leaves
  others: Part[];
}

// Of an opened block its units come one by one, and then the rest; attention comes before feed-forward.
export function sorted(found: Parts, measure: Measure): Sorted {
  const layers = new Map<number, Layer>();
  let opened: Opened | null = null;
  const others: Part[] = [];
  for (const part of found.parts) {
    if (part.layer === null) {
      others.push(part);
      continue;
    }
    const row = layers.get(part.layer) ?? { layer: part.layer, attention: 0, forward: 0 };
    layers.set(part.layer, row);
    const value = valueOf(part, measure);
    let attention = part.kind === "attention" || part.kind === "head";
    if (part.kind === "head" || part.kind === "neuron" || part.kind === "rest") {
      opened ??= { layer: part.layer, heads: [], neurons: [], rests: { heads: null, neurons: null } };
      if (part.kind === "head") opened.heads.push(part);
      else if (part.kind === "neuron") opened.neurons.push(part);
      else if (opened.rests.heads === null) {
        attention = true;
        opened.rests.heads = part;
      } else opened.rests.neurons = part;
    }
    if (attention) row.attention += value;
    else row.forward += value;
  }
  return { layers: [...layers.values()].sort((a, b) => a.layer - b.layer), opened, others };
}

export const NAMES: Partial<Record<Part["kind"], string>> = {
  embedding: "Embedding", norms: "Biases of norms", rounding: "Rounding", output: "Biases of the last norm and the head", rest: "Other units and biases",
};
