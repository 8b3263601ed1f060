// Names of what is measured, and packed numbers.

import type { Records } from "../../data/source";
import type { Numeric } from "../../lib/format";
import { count, decapital, known, number } from "../../lib/format";

const SUBJECTS: Record<string, string> = {
  mu: "mean", pos: "position", ctx: "context", resid: "residual", bias: "bias", const: "constant",
  "pos cross-validated": "position, cross-validated",
  "pos noise": "noise of position", "pos and ctx": "position and context", states: "hidden states", "cosines of pos": "cosines of position",
};

const COLOURS: Record<string, string> = {
  pos: "var(--blue)", "pos cross-validated": "var(--sky)", "pos noise": "var(--blue)", ctx: "var(--orange)", states: "var(--green)", "pos and ctx": "var(--purple)",
};

export const subjectOf = (name: string): string => SUBJECTS[name] ?? name;

export const colourOf = (subject: string): string => COLOURS[subject] ?? "var(--grey)";

// A measure with what it is of, unless it says so itself.
export function titled(label: string, subject: string): string {
  const of = subjectOf(subject);
  const [first = "", ...rest] = of.split(", ");
  return [label, ...(decapital(label).includes(first.split(" ")[0]!) ? rest : [of])].join(", ");
}

// A number that may be a count.
export const plain = (value: Numeric): string => (known(value) && Number.isInteger(value) ? count(value) : number(value));

// What is compared with: a control's kind is a phrase.
export const besideOf = (kind: string | null): string => (kind ? `Dashed: ${kind}.` : "It has no control.");

export const between = (low: Numeric, high: Numeric): string =>
  known(low) && known(high) ? `${plain(low)} to ${plain(high)}` : known(low) ? `at least ${number(low)}` : known(high) ? `at most ${number(high)}` : "";

// float32 in base64.
export function unpacked(text: string): Float32Array {
  return new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

export const valuesOf = (matrix: Records["Matrix"]): Float32Array => unpacked(matrix.values);
