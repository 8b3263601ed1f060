// The colours of many points: those of categories, or of a value on a scale.

import { category, diverging, resolved, sequential, type Rgb } from "./colours";
import type { Key } from "./figures";

export type Colouring =
  | { kind: "categories"; of: Uint8Array | Uint16Array; names: readonly string[]; colours?: readonly string[] }
  | { kind: "sequential" | "diverging"; of: Float32Array; name: string; low: number; high: number };

// more points than this cover each other, and are let through
const MANY = 20_000;

export const keysOf = (colouring: Colouring | undefined): Key[] =>
  colouring?.kind === "categories" ? colouring.names.map((name, n) => ({ name, colour: colouring.colours?.[n] ?? category(n) })) : [];

function colourOf(colouring: Colouring | undefined): (point: number) => Rgb {
  const own = resolved(colouring?.kind === "categories" ? keysOf(colouring).map((key) => key.colour) : ["var(--accent)"]);
  if (!colouring) return () => own[0]!;
  if (colouring.kind === "categories") return (n) => own[Math.min(colouring.of[n] ?? 0, own.length - 1)]!;
  const { of, low, kind } = colouring;
  const span = colouring.high - low || 1;
  return kind === "sequential" ? (n) => sequential(((of[n] ?? 0) - low) / span) : (n) => diverging((2 * ((of[n] ?? 0) - low)) / span - 1);
}

// Red, green, blue, alpha of each point, in the theme as it is now.
export function coloured(colouring: Colouring | undefined, count: number): Uint8Array {
  const all = new Uint8Array(4 * count);
  const colour = colourOf(colouring);
  const alpha = count > MANY ? 150 : 205;
  for (let n = 0; n < count; n += 1) {
    all.set(colour(n), 4 * n);
    all[4 * n + 3] = alpha;
  }
  return all;
}
