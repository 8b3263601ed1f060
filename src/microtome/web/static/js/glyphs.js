// Small pictures inside text: a value beside its control.

import { h, s } from "./dom.js";
import { number } from "./format.js";

// A filled mark for the value, an open one for the control, joined by a line; from zero, to the larger of the two.
export function against(value, control, { width = 96, limit = null } = {}) {
  if (value === null || value === undefined) return h("span", { class: "glyph" });
  const known = control !== null && control !== undefined;
  const top = limit ?? Math.max(Math.abs(value), known ? Math.abs(control) : 0, 1e-12);
  const low = Math.min(0, value, known ? control : 0) < 0 ? -top : 0;
  const x = (number) => 5 + (width - 10) * Math.max(0, Math.min(1, (number - low) / (top - low)));
  const label = known ? `${number(value)} against ${number(control)} in the control` : `${number(value)}, no control`;
  return s("svg", { class: "glyph", width, height: 14, viewBox: `0 0 ${width} 14`, role: "img", "aria-label": label },
    s("line", { class: "axis", x1: 5, x2: width - 5, y1: 7, y2: 7 }),
    s("line", { class: "zero", x1: x(0), x2: x(0), y1: 3, y2: 11 }),
    known ? s("line", { class: "span", x1: x(control), x2: x(value), y1: 7, y2: 7 }) : null,
    known ? s("circle", { class: "control", cx: x(control), cy: 7, r: 3.2 }) : null,
    s("circle", { class: "value", cx: x(value), cy: 7, r: 3.8 }));
}

// A horizontal bar with a tick where the control is.
export function bar(value, control, limit) {
  const share = (number) => `${(100 * Math.min(1, Math.abs(number) / (limit || 1))).toFixed(1)}%`;
  return h("span", { class: "meter", "aria-hidden": "true" },
    h("span", { class: `fill ${value < 0 ? "minus" : "plus"}`, vars: { width: share(value ?? 0) } }),
    control === null || control === undefined ? null : h("span", { class: "tick", vars: { left: share(control) } }));
}
