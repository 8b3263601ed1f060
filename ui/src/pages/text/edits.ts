// What is done to units, and how it is written in an address: `heads.23/4*off neurons.3/5*scale*2*4` switches a head off at all tokens
// and doubles a neuron at token 4.

export const CHANGES = { off: "off", scale: "times", set: "set to", add: "plus" } as const;
export type Change = keyof typeof CHANGES;

export interface Edit {
  unit: string;
  change: Change;
  value: number | null;
  // at this token; null: at all
  place: number | null;
}

const UNIT = /^[\w@./-]{3,200}$/;
const isChange = (text: string): text is Change => text in CHANGES;

// What changes a unit to nothing at first: a value to begin with.
export const USUAL: Record<Change, number | null> = { off: null, scale: 2, set: 1, add: 1 };

export const isHead = (unit: string): boolean => unit.startsWith("heads.");

// Of a head what it adds is a vector: it is switched off or scaled.
export const changesOf = (unit: string): Change[] => (isHead(unit) ? ["off", "scale"] : ["off", "scale", "set", "add"]);

export function parsed(text: string, most: number): Edit[] {
  const found: Edit[] = [];
  for (const one of text.split(" ").filter(Boolean)) {
    const [unit = "", change = "", value = "", place = ""] = one.split("*");
    if (!UNIT.test(unit) || !isChange(change) || !changesOf(unit).includes(change)) continue;
    const number = change === "off" ? null : Number(value || NaN);
    const at = place === "" ? null : Number(place);
    if ((number !== null && !(Math.abs(number) <= 1e6)) || (at !== null && !(Number.isInteger(at) && at >= 0))) continue;
    found.push({ unit, change, value: number, place: at });
  }
  return found.slice(0, most);
}

export const written = (edits: readonly Edit[]): string =>
  edits.map(({ unit, change, value, place }) => [unit, change, value ?? "", place ?? ""].join("*").replace(/\*+$/, "")).join(" ");

// A factor is named with the site at which it is changed; its page is that of the factor.
export function pageOf(unit: string): { unit: string; site: string | null } {
  const [, own = unit, site = null] = /^([^/]+\/[^@]+)@(.+)$/.exec(unit) ?? [];
  return { unit: own, site };
}
