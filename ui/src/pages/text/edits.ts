// What is done to units, and how it is written in an address: `heads.23/4*off neurons.3/5*scale*2*4` switches a head off at all tokens
// and doubles a neuron at token 4.

import { count } from "../../lib/format";
import type { Left } from "../../lib/left";

export const CHANGES = { off: "off", scale: "times", set: "set to", add: "plus" } as const;
export type Change = keyof typeof CHANGES;

export interface Edit {
  unit: string;
  change: Change;
  value: number | null;
  // at this token; null: at all
  place: number | null;
}

const MOST = 1e6;
const UNIT = /^[\w@./-]{3,200}$/;
const isChange = (text: string): text is Change => Object.hasOwn(CHANGES, text);

// What changes a unit to nothing at first: a value to begin with.
export const USUAL: Record<Change, number | null> = { off: null, scale: 2, set: 1, add: 1 };

export const isHead = (unit: string): boolean => unit.startsWith("heads.");

// Of a head what it adds is a vector: it is switched off or scaled.
export const changesOf = (unit: string): Change[] => (isHead(unit) ? ["off", "scale"] : ["off", "scale", "set", "add"]);

// An edit as it is written, or why it is none.
function parsedOne(one: string): Edit | string {
  const [unit = "", change = "", value = "", place = ""] = one.split("*");
  if (!UNIT.test(unit) || !isChange(change) || !changesOf(unit).includes(change)) return "it is no edit";
  const number = change === "off" ? null : Number(value || NaN);
  if (number !== null && !(Math.abs(number) <= MOST)) return `its value is no number up to ${count(MOST)}`;
  const at = place === "" ? null : Number(place);
  if (at !== null && !(Number.isInteger(at) && at >= 0)) return "its token is no number";
  return { unit, change, value: number, place: at };
}

// The edits of an address, at most so many, and what of it is left out.
export function parsed(text: string, most: number): { edits: Edit[]; left: Left[] } {
  const [edits, left]: [Edit[], Left[]] = [[], []];
  for (const one of text.split(" ").filter(Boolean)) {
    const found = edits.length < most ? parsedOne(one) : `at most ${count(most)} edits are made at once`;
    if (typeof found === "string") left.push({ what: one, why: found });
    else edits.push(found);
  }
  return { edits, left };
}

export const written = (edits: readonly Edit[]): string =>
  edits.map(({ unit, change, value, place }) => [unit, change, value ?? "", place ?? ""].join("*").replace(/\*+$/, "")).join(" ");

// A factor is named with the site at which it is changed; its page is that of the factor.
export function pageOf(unit: string): { unit: string; site: string | null } {
  const [, own = unit, site = null] = /^([^/]+\/[^@]+)@(.+)$/.exec(unit) ?? [];
  return { unit: own, site };
}
