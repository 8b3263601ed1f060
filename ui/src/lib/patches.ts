// A picture in patches on a canvas: those whose activation is known in grey under its colour, the others dimmed, one framed.

import { css, resolved, type Rgb } from "./colours";

export interface Patched {
  // nothing: the patches alone
  picture: ImageBitmap | null;
  rows: number;
  columns: number;
  // of each patch, row by row, from -1 to 1; NaN where it is not known. Nothing: the picture alone
  shares: Float32Array | null;
  framed: number | null;
}

const DIMMED = 0.35;
// so much of a picture is taken away under a colour that the colour is read alike on light and dark
const FADED = 0.55;
const FRAME = 1.5;

type Box = [x: number, y: number, width: number, height: number];

export function drawPatches(canvas: HTMLCanvasElement, patched: Patched): void {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { picture, rows, columns, shares, framed } = patched;
  const { width, height } = canvas;
  const [plus, minus, panel, hair] = resolved(["var(--plus-word)", "var(--minus-word)", "var(--panel)", "var(--hair)"]) as [Rgb, Rgb, Rgb, Rgb];
  const strength = parseFloat(getComputedStyle(canvas).getPropertyValue("--strength")) / 100 || 1;
  const edge = (place: number, count: number, size: number) => Math.round((place * size) / count);
  const box = (patch: number): Box => {
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    const [x, y] = [edge(column, columns, width), edge(row, rows, height)];
    return [x, y, edge(column + 1, columns, width) - x, edge(row + 1, rows, height) - y];
  };
  const fill = (colour: Rgb, alpha: number, how: GlobalCompositeOperation, at: Box) => {
    context.globalAlpha = alpha;
    context.globalCompositeOperation = how;
    context.fillStyle = css(colour);
    context.fillRect(...at);
  };
  fill(panel, 1, "source-over", [0, 0, width, height]);
  if (picture) context.drawImage(picture, 0, 0, width, height);
  shares?.forEach((share, patch) => {
    const at = box(patch);
    if (Number.isNaN(share)) return picture ? fill(panel, DIMMED, "source-over", at) : fill(hair, 1, "source-over", inner(at));
    // colours are those of activation alone
    if (picture) {
      fill([128, 128, 128], 1, "saturation", at);
      fill(panel, FADED, "source-over", at);
    }
    fill(share < 0 ? minus : plus, Math.min(1, Math.abs(share)) * strength, "source-over", at);
  });
  context.globalAlpha = 1;
  context.globalCompositeOperation = "source-over";
  if (framed !== null) frame(context, box(framed));
}

// a hair's breadth between patches that are drawn without a picture
const inner = ([x, y, width, height]: Box): Box => [x, y, Math.max(1, width - 1), Math.max(1, height - 1)];

// Around the patch, which is small: black inside white is seen on any picture.
function frame(context: CanvasRenderingContext2D, [x, y, width, height]: Box): void {
  const thick = FRAME * devicePixelRatio;
  context.lineWidth = thick;
  for (const [n, colour] of ["#000", "#fff"].entries()) {
    const away = (n + 0.5) * thick;
    context.strokeStyle = colour;
    context.strokeRect(x - away, y - away, width + 2 * away, height + 2 * away);
  }
}
