// Numbers and names as people read them. Every number on the page is written here.

const MINUS = "\u2212";
const NONE = "\u2013";

export type Numeric = number | null | undefined;

export const known = (value: Numeric): value is number => value !== null && value !== undefined && Number.isFinite(value);

export function number(value: Numeric, digits = 3): string {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text: string;
  if (size >= 1e5 || size < 1e-3) {
    const [mantissa = "", exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    text = `${mantissa}e${Number(exponent)}`;
  } else {
    text = value.toFixed(Math.max(0, Math.min(4, digits - 1 - Math.floor(Math.log10(size)))));
    if (size >= 1e4) text = Number(text).toLocaleString("en-US");
  }
  return text.replaceAll("-", MINUS);
}

// The same without zeros at the end: for numbers that stand alone.
export const brief = (value: Numeric, digits = 3): string =>
  number(value, digits).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

// With as many decimals everywhere: for a column of numbers that are about 1.
export const fixed = (value: Numeric, decimals = 2): string => (known(value) ? value.toFixed(decimals).replace(/^-(?=0(\.0*)?$)/, "").replace("-", MINUS) : NONE);

// A number beside a line of an axis.
export const tick = (value: number): string =>
  Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
    ? number(value, 2)
    : String(Number(value.toPrecision(4))).replace("-", MINUS);

export const count = (value: Numeric): string => (known(value) ? value.toLocaleString("en-US") : NONE);

export const percent = (value: Numeric, digits = 1): string =>
  known(value) ? `${(100 * value).toFixed(digits).replace("-", MINUS)}\u202f%` : NONE;

// "q = 0.012"; nothing where none is given.
export function qvalue(q: Numeric): string | null {
  if (!known(q)) return null;
  return q < 1e-3 ? `q < ${q < 1e-4 ? "0.0001" : "0.001"}` : `q = ${q.toFixed(3)}`;
}

// The same for a column that says q at its head.
export const qcell = (q: Numeric): string => qvalue(q)?.replace("q = ", "").replace("q ", "") ?? "";

export function duration(seconds: Numeric): string {
  if (!known(seconds)) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const plural = (n: number, one: string, many = `${one}s`): string => `${count(n)} ${n === 1 ? one : many}`;

export const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);

export const decapital = (text: string): string => text.charAt(0).toLowerCase() + text.slice(1);

// A unit's address for people: "layer 24, unit 343".
export function inWords(unit: { basis: string; layer: number | null; expert: number | null; index: number }): string {
  const parts: string[] = [];
  if (unit.layer !== null) parts.push(`layer ${unit.layer}`);
  if (unit.expert !== null) parts.push(`expert ${unit.expert}`);
  parts.push(`${unit.basis === "heads" ? "head" : "unit"} ${unit.index}`);
  return parts.join(", ");
}
