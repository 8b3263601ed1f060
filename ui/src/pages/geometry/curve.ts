// The curve of positions: where its points are on paper, seen along an axis or from anywhere, and how it is drawn.

import type { Records } from "../../data/source";
import { css, resolved, sequential } from "../../lib/colours";
import { known } from "../../lib/format";

type Position = Records["Position"];
type Three = readonly [number, number, number];

export interface Curve {
  places: readonly Position[];
  axes: readonly [Float32Array, Float32Array, Float32Array];
  // how many axes are known
  known: number;
  // positions so far away from the others that they would shrink them to a dot
  far: readonly number[];
}

export type Look = { kind: "plane"; axes: readonly [number, number] } | { kind: "space"; azimuth: number; elevation: number };

export interface Drawn {
  left: Float32Array;
  top: Float32Array;
  deep: Float32Array;
  // where the origin and the ends of the three axes are
  cross: readonly { left: number; top: number }[];
}

const FAR = 3;

// The sign of a singular vector is chance: each axis is turned so that it rises with position.
function rising(values: Float32Array): Float32Array {
  const middle = (values.length - 1) / 2;
  const slope = values.reduce((sum, value, n) => sum + value * (n - middle), 0);
  return slope < 0 ? values.map((value) => -value) : values;
}

export function curveOf(rows: readonly Position[]): Curve | null {
  const places = rows.filter((row) => known(row.x) && known(row.y));
  if (places.length < 2) return null;
  const axis = (name: "x" | "y" | "z") => rising(Float32Array.from(places, (row) => row[name] ?? 0));
  const axes = [axis("x"), axis("y"), axis("z")] as const;
  const away = places.map((_, n) => Math.hypot(axes[0][n]!, axes[1][n]!, axes[2][n]!));
  const usual = [...away].sort((a, b) => a - b)[Math.floor(0.9 * (away.length - 1))]!;
  const far = away.flatMap((each, n) => (each > FAR * usual ? [n] : []));
  return { places, axes, known: places.some((row) => known(row.z)) ? 3 : 2, far };
}

// Right, up and towards the reader.
function basis(look: Look): readonly [Three, Three, Three] {
  if (look.kind === "plane") {
    const unit = (n: number): Three => [n === 0 ? 1 : 0, n === 1 ? 1 : 0, n === 2 ? 1 : 0];
    return [unit(look.axes[0]), unit(look.axes[1]), [0, 0, 0]];
  }
  const [a, e] = [(look.azimuth * Math.PI) / 180, (look.elevation * Math.PI) / 180];
  const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
  return [[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]];
}

// All of it within the paper (or all but what is far away), one unit as long in every direction.
export function project(curve: Curve, look: Look, width: number, height: number, fit: "most" | "all", zoom = 1): Drawn {
  const out = new Set(fit === "all" ? [] : curve.far);
  const inside = curve.places.map((_, n) => n).filter((n) => !out.has(n));
  const lows = curve.axes.map((axis) => inside.reduce((low, n) => Math.min(low, axis[n]!), Infinity));
  const highs = curve.axes.map((axis) => inside.reduce((high, n) => Math.max(high, axis[n]!), -Infinity));
  const middle = lows.map((low, n) => (low + highs[n]!) / 2);
  const radius = inside.reduce((most, n) => Math.max(most, Math.hypot(...curve.axes.map((axis, k) => axis[n]! - middle[k]!))), 1e-12);
  const spans = look.kind === "plane" ? look.axes.map((n) => highs[n]! - lows[n]!) : [2 * radius, 2 * radius];
  const scale = zoom * 0.86 * Math.min(width / (spans[0]! || 1e-12), height / (spans[1]! || 1e-12));
  const [right, up, towards] = basis(look);
  const along = (way: Three, x: number, y: number, z: number) => way[0] * (x - middle[0]!) + way[1] * (y - middle[1]!) + way[2] * (z - middle[2]!);
  const left = (x: number, y: number, z: number) => width / 2 + scale * along(right, x, y, z);
  const top = (x: number, y: number, z: number) => height / 2 - scale * along(up, x, y, z);
  const each = (of: (x: number, y: number, z: number) => number) =>
    Float32Array.from(curve.places, (_, n) => of(curve.axes[0][n]!, curve.axes[1][n]!, curve.axes[2][n]!));
  const ends = [[0, 0, 0], [radius, 0, 0], [0, radius, 0], [0, 0, radius]] as const;
  return {
    left: each(left), top: each(top), deep: each((x, y, z) => along(towards, x, y, z) / radius),
    cross: ends.map(([x, y, z]) => ({ left: left(x, y, z), top: top(x, y, z) })),
  };
}

// The part of the scale that is seen on this paper: neither end of it melts into the ground.
function ends(): readonly [number, number] {
  const [paper] = resolved(["var(--panel)"]);
  return paper && paper[0] > 128 ? [0, 0.86] : [0.22, 1];
}

export function colours(count: number): string[] {
  const [low, high] = ends();
  return Array.from({ length: count }, (_, n) => css(sequential(low + ((high - low) * n) / Math.max(1, count - 1))));
}

export const ramp = (): string => `linear-gradient(90deg, ${colours(8).join(", ")})`;

export function paint(context: CanvasRenderingContext2D, curve: Curve, look: Look, drawn: Drawn, width: number, height: number, small = false): void {
  const [line, ink] = resolved(["var(--line)", "var(--soft)"]).map(css) as [string, string];
  const { left, top, deep, cross } = drawn;
  const shades = colours(curve.places.length);
  context.clearRect(0, 0, width, height);
  context.strokeStyle = line;
  context.lineWidth = 1;
  const stroke = (x0: number, y0: number, x1: number, y1: number) => {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  };
  const [origin, ...tips] = cross as [Drawn["cross"][number], ...Drawn["cross"][number][]];
  if (look.kind === "plane") {
    stroke(0, origin.top, width, origin.top);
    stroke(origin.left, 0, origin.left, height);
  } else {
    for (const tip of tips) stroke(2 * origin.left - tip.left, 2 * origin.top - tip.top, tip.left, tip.top);
  }
  context.lineWidth = small ? 1 : 1.5;
  context.globalAlpha = 0.75;
  for (let n = 1; n < left.length; n += 1) {
    context.strokeStyle = shades[n]!;
    stroke(left[n - 1]!, top[n - 1]!, left[n]!, top[n]!);
  }
  context.globalAlpha = 1;
  const size = (small ? 1.3 : left.length > 200 ? 2.4 : 3.2);
  for (const n of Array.from(left.keys()).sort((a, b) => deep[a]! - deep[b]! || a - b)) {
    context.fillStyle = shades[n]!;
    context.beginPath();
    context.arc(left[n]!, top[n]!, size * (1 + 0.3 * Math.max(-1, Math.min(1, deep[n]!))), 0, 2 * Math.PI);
    context.fill();
  }
  if (small) return;
  const family = getComputedStyle(document.body).fontFamily;
  context.font = `11px ${family}`;
  context.fillStyle = ink;
  if (look.kind === "space") tips.forEach((tip, n) => context.fillText(`axis ${n + 1}`, tip.left + 4, tip.top - 4));
  context.font = `600 12px ${family}`;
  for (const n of [0, left.length - 1]) context.fillText(String(curve.places[n]!.position), left[n]! + 6, top[n]! - 6);
}
