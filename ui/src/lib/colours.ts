// Colours that colour-blind readers tell apart: Okabe and Ito's for categories, viridis for what grows, blue to orange for what has
// a sign. Those of text and paper are variables in style.css; a canvas asks for them by `resolved`.

export type Rgb = readonly [red: number, green: number, blue: number];

export const CATEGORIES: readonly string[] = [
  "var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--vermilion)", "var(--sky)", "var(--olive)", "var(--grey)",
];

// The colour of the n-th category; beyond the last all are grey.
export const category = (n: number): string => CATEGORIES[Math.min(n, CATEGORIES.length - 1)] ?? "var(--grey)";

const VIRIDIS: readonly Rgb[] = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
];
const DIVERGING: readonly Rgb[] = [
  [8, 69, 127], [38, 116, 178], [105, 166, 209], [178, 208, 228], [242, 240, 235], [245, 205, 160], [236, 160, 84], [205, 108, 28], [140, 64, 8],
];

const UNKNOWN: Rgb = [150, 150, 150];

// Of no number the colour is a grey that no scale has.
function between(stops: readonly Rgb[], share: number): Rgb {
  if (!Number.isFinite(share)) return UNKNOWN;
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(place));
  const rest = place - low;
  const a = stops[low]!;
  const b = stops[low + 1]!;
  return [a[0] + (b[0] - a[0]) * rest, a[1] + (b[1] - a[1]) * rest, a[2] + (b[2] - a[2]) * rest];
}

// From 0 to 1.
export const sequential = (share: number): Rgb => between(VIRIDIS, share);

// From -1 to 1.
export const diverging = (share: number): Rgb => between(DIVERGING, (share + 1) / 2);

export const css = ([red, green, blue]: Rgb): string => `rgb(${Math.round(red)} ${Math.round(green)} ${Math.round(blue)})`;

// A scale as a CSS gradient, for its legend.
export function gradient(kind: "sequential" | "diverging"): string {
  const stops = kind === "sequential" ? VIRIDIS : DIVERGING;
  return `linear-gradient(90deg, ${stops.map(css).join(", ")})`;
}

// What a CSS colour (a variable, too) is in the theme as it is now.
export function resolved(colours: readonly string[]): Rgb[] {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const found = colours.map((colour): Rgb => {
    probe.style.color = colour;
    const [red = 0, green = 0, blue = 0] = (getComputedStyle(probe).color.match(/[\d.]+/g) ?? []).map(Number);
    return [red, green, blue];
  });
  probe.remove();
  return found;
}
