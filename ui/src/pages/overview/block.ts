// How one block of the model is put together, as places in a drawing: the stream runs down at the left, branches leave it and come back.

import type { Records } from "../../data/source";

type Shape = Records["ModelShape"];

export const WIDTH = 340;
export const STREAM = 30;
const LEFT = 76;
const WIDE = WIDTH - LEFT - 6;
const GAP = 14;
const NORM = 22;
const ATTENTION = 96;
const MLP = 104;

export interface Box {
  kind: "norm" | "attention" | "mlp";
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Drawing {
  boxes: Box[];
  // lines with an arrow at their end, as paths
  arrows: string[];
  lines: string[];
  // where what a branch makes is added to the stream
  sums: number[];
  height: number;
  // where norms sit, in words
  said: string;
}

const SAID: Record<string, string> = {
  pre: "Each branch reads the stream through a norm; the stream itself is never normed.",
  post: "Norms sit on the stream, after each addition.",
  sandwich: "Each branch has a norm before it and one behind it.",
  parallel: "Attention and feed-forward read the same stream through one norm, side by side, and are added at once.",
};

interface Step {
  boxes: Box[];
  arrows: string[];
  sum: number;
  end: number;
}

// A branch that leaves the stream at y: boxes one below the other, back at the last one's end.
function branch(kinds: readonly Box["kind"][], y: number, x: number, width: number): Step {
  const middle = x + width / 2;
  const boxes: Box[] = [];
  const arrows: string[] = [];
  let at = y + GAP;
  let from = `M${STREAM} ${y}H${middle}`;
  for (const kind of kinds) {
    const height = kind === "norm" ? NORM : kind === "mlp" ? MLP : ATTENTION;
    arrows.push(`${from}V${at}`);
    boxes.push({ kind, x, y: at, width, height });
    at += height;
    from = `M${middle} ${at}`;
    at += GAP;
  }
  arrows.push(`${from}V${at}H${STREAM + 8}`);
  return { boxes, arrows, sum: at, end: at + 2 * GAP };
}

export function block(shape: Shape): Drawing {
  const top = 14;
  const norm = shape.norm ?? "";
  const said = SAID[norm] ?? "The atlas does not say where its norms sit; none is drawn.";
  if (norm === "parallel") return parallel(top, said);
  const around = (kind: Box["kind"]): Box["kind"][] => [...(norm === "pre" || norm === "sandwich" ? ["norm" as const] : []), kind, ...(norm === "sandwich" ? ["norm" as const] : [])];
  const drawing: Drawing = { boxes: [], arrows: [], lines: [], sums: [], height: 0, said };
  let y = top;
  for (const kind of ["attention", "mlp"] as const) {
    const step = branch(around(kind), y, LEFT, WIDE);
    drawing.boxes.push(...step.boxes);
    drawing.arrows.push(...step.arrows);
    drawing.sums.push(step.sum);
    y = step.end;
    if (norm === "post") {
      drawing.boxes.push({ kind: "norm", x: 0, y: step.sum + GAP + 2, width: 2 * STREAM, height: NORM });
      y = step.sum + GAP + NORM + 2 * GAP;
    }
  }
  return { ...drawing, height: y };
}

function parallel(top: number, said: string): Drawing {
  const [left, right] = [LEFT - 8, LEFT - 8 + (WIDE + 8) / 2 + 5];
  const width = (WIDE + 8) / 2 - 5;
  const norm: Box = { kind: "norm", x: left, y: top + GAP, width: WIDE + 8, height: NORM };
  const start = norm.y + NORM;
  const inner = start + GAP;
  const end = inner + MLP + GAP;
  const middles = [left + width / 2, right + width / 2] as const;
  return {
    boxes: [norm, { kind: "attention", x: left, y: inner, width, height: MLP }, { kind: "mlp", x: right, y: inner, width, height: MLP }],
    arrows: [`M${STREAM} ${top}H${left + (WIDE + 8) / 2}V${norm.y}`, ...middles.map((x) => `M${x} ${start}V${inner}`), `M${middles[1]} ${inner + MLP}V${end}H${STREAM + 8}`],
    lines: [`M${middles[0]} ${inner + MLP}V${end}`],
    sums: [end], height: end + 2 * GAP, said,
  };
}

// Query heads over the key-value heads that they share: [x, width] of each, from 0 to 1.
export function groups(shape: Shape): { queries: [number, number][]; keys: [number, number][] } {
  const across = (count: number): [number, number][] => Array.from({ length: count }, (_, n) => [n / count, 1 / count]);
  const heads = Math.min(shape.heads ?? 0, 64);
  return { queries: across(heads), keys: across(shape.heads_kv && shape.heads ? Math.max(1, Math.round((shape.heads_kv * heads) / shape.heads)) : heads) };
}
