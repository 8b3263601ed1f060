// Numbers and names as people read them.

const MINUS = "\u2212";

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size >= 1e5 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    text = `${mantissa}e${Number(exponent)}`;
  } else {
    text = value.toFixed(Math.max(0, Math.min(4, digits - 1 - Math.floor(Math.log10(size)))));
  }
  return text.replaceAll("-", MINUS);
}

// The same without zeros at the end: for numbers that stand alone.
export const brief = (value, digits = 3) => number(value, digits).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

export const count = (value) => (value === null || value === undefined ? "\u2013" : value.toLocaleString("en-US"));

export const percent = (value, digits = 1) =>
  value === null || value === undefined ? "\u2013" : `${(100 * value).toFixed(digits).replace("-", MINUS)}\u202f%`;

export const signed = (value) => (value > 0 ? `+${number(value)}` : number(value));

export function qvalue(q) {
  if (q === null || q === undefined) return null;
  return q < 1e-3 ? `q < ${q < 1e-4 ? "0.0001" : "0.001"}` : `q = ${q.toFixed(3)}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// A unit's address for people: "layer 24, unit 343".
export function inWords(unit) {
  const parts = [];
  if (unit.layer !== null) parts.push(`layer ${unit.layer}`);
  if (unit.expert !== null) parts.push(`expert ${unit.expert}`);
  parts.push(`${unit.basis === "heads" ? "head" : "unit"} ${unit.index}`);
  return parts.join(", ");
}
