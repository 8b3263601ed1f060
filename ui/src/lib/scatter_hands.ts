// How a plane of points is handled: pointers (one moves it, two look closer), the wheel, and keys.

import { listen } from "./listen";

export interface Plane {
  // the point under a place, or -1
  under: (left: number, top: number) => number;
  // the point that is read, or -1
  at: () => number;
  read: (point: number) => void;
  step: (way: readonly [number, number]) => void;
  move: (dx: number, dy: number) => void;
  closer: (factor: number, left?: number, top?: number) => void;
  whole: () => void;
  open: (point: number) => void;
}

const WAYS: Record<string, readonly [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const NUDGE = 60;
// pixels that a hand may shake without dragging
const SHAKE = 3;

export function hands(node: HTMLElement, plane: Plane): () => void {
  const fingers = new Map<number, { x: number; y: number }>();
  let dragged = 0;
  const here = (event: MouseEvent) => {
    const frame = node.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  };
  const move = (event: PointerEvent) => {
    const now = here(event);
    const before = fingers.get(event.pointerId);
    if (!before) return plane.read(plane.under(now.x, now.y));
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    dragged += Math.hypot(now.x - before.x, now.y - before.y);
    fingers.set(event.pointerId, now);
    if (other) {
      const apart = Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
      plane.closer(Math.hypot(now.x - other.x, now.y - other.y) / apart, (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else if (dragged > SHAKE) {
      plane.read(-1);
      plane.move(now.x - before.x, now.y - before.y);
    }
  };
  const up = (event: PointerEvent) => {
    const last = fingers.delete(event.pointerId) && fingers.size === 0;
    if (!last || dragged > SHAKE || event.type === "pointercancel") return;
    const { x, y } = here(event);
    const point = plane.under(x, y);
    // a finger reads a point first and opens it when it comes again
    if (point >= 0 && (event.pointerType === "mouse" || point === plane.at())) plane.open(point);
    else plane.read(point);
  };
  const press = (event: KeyboardEvent) => {
    const way = WAYS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (way && event.shiftKey) plane.move(-NUDGE * way[0], NUDGE * way[1]);
    else if (way) plane.step(way);
    else if (event.key === "+" || event.key === "=") plane.closer(1.5);
    else if (event.key === "-") plane.closer(1 / 1.5);
    else if (event.key === "0") plane.whole();
    else if (event.key === "Enter" && plane.at() >= 0) plane.open(plane.at());
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return listen(node, {
    pointerdown: (event) => {
      fingers.set(event.pointerId, here(event));
      dragged = 0;
      node.setPointerCapture(event.pointerId);
    },
    pointermove: move,
    pointerup: up,
    pointercancel: up,
    pointerleave: () => {
      if (!fingers.size) plane.read(-1);
    },
    wheel: (event) => {
      if (document.activeElement !== node && !event.ctrlKey) return; // the page scrolls over it until it is chosen
      event.preventDefault();
      const { x, y } = here(event);
      plane.closer(2 ** (-event.deltaY / 300), x, y);
    },
    keydown: press,
    blur: () => plane.read(-1),
  });
}
