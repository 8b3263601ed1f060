// Charts by layer in SVG: stacked bars with control marks, and lines with bands. Each redraws itself to the width it is given,
// is read with the pointer or with the arrow keys, and has its numbers as a table.

import { h, s, clear, showTip, hideTip } from "./dom.js";
import { number } from "./format.js";

const HEIGHT = 250, LEFT = 46, RIGHT = 10, TOP = 12, BOTTOM = 34;

// A figure: title, one line on how to read it, legend, chart, numbers as a table.
//   x: labels by index; series: [{name, cls, values, control?, low?, high?}]; draw: stacked | lines; log, unit, format
export function figure({ title, read, x, xTitle, series, draw, log = false, format = number, tools = null }) {
  const box = h("div", { class: "chart" });
  const chart = { x, xTitle, series, format, log, at: null };
  const paint = () => { const width = box.clientWidth; if (width > 0 && width !== chart.width) { chart.width = width; render(box, chart, draw); } };
  new ResizeObserver(paint).observe(box);
  const controls = series.some((each) => each.control && each.control.some((value) => value !== null));
  return h("figure", { class: "panel" },
    h("div", { class: "figtop" }, h("h3", {}, title), tools),
    h("p", { class: "read" }, read),
    h("ul", { class: "legend" },
      series.map((each) => h("li", {}, h("span", { class: `swatch ${each.cls}` }), each.name)),
      controls ? h("li", {}, h("span", { class: "swatch dashes" }), "control") : null),
    box,
    h("details", { class: "numbers" }, h("summary", {}, "Numbers"), table(chart)));
}

function table({ x, xTitle, series, format }) {
  const heads = series.flatMap((each) => (each.control ? [each.name, `${each.name}, control`] : [each.name]));
  return h("div", { class: "scroll" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, xTitle), heads.map((name) => h("th", { scope: "col", class: "num" }, name)))),
    h("tbody", {}, x.map((label, i) => h("tr", {}, h("th", { scope: "row" }, label),
      series.flatMap((each) => (each.control ? [each.values[i], each.control[i]] : [each.values[i]]).map((value) => h("td", { class: "num" }, format(value)))))))));
}

function render(box, chart, draw) {
  const { x, series, width } = chart;
  const svg = s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": describe(chart) });
  const step = (width - LEFT - RIGHT) / x.length;
  const middle = (i) => LEFT + step * (i + 0.5);
  const y = draw === "stacked" ? scale(0, Math.max(1, ...x.map((_, i) => total(series, i))), false) : extent(chart);
  for (const tick of y.ticks) {
    svg.append(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, chart.format === number ? short(tick) : chart.format(tick)));
  }
  const every = Math.max(1, Math.ceil((longest(x) * 6.4 + 12) / step));
  x.forEach((label, i) => {
    if (i % every === 0) svg.append(s("text", { class: "tick", x: middle(i), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, label));
  });
  svg.append(s("text", { class: "axisname", x: LEFT + (width - LEFT - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, chart.xTitle));
  const cursor = s("rect", { class: "cursor", x: 0, y: TOP, width: Math.max(step, 2), height: HEIGHT - TOP - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  (draw === "stacked" ? stacked : lines)(svg, chart, y, middle, step);
  listen(svg, chart, cursor, middle, step);
  clear(box).append(svg);
}

const short = (tick) => (Math.abs(tick) >= 1e5 || (tick !== 0 && Math.abs(tick) < 1e-3) ? number(tick, 2) : String(Number(tick.toPrecision(4))).replace("-", "\u2212"));
const longest = (labels) => Math.max(...labels.map((label) => label.length));
const total = (series, i) => series.reduce((sum, each) => sum + Math.max(0, each.values[i] ?? 0), 0);

function stacked(svg, { x, series }, y, middle, step) {
  const thick = Math.max(1.5, Math.min(30, step * 0.78));
  x.forEach((_, i) => {
    let base = 0;
    for (const each of series) {
      const value = Math.max(0, each.values[i] ?? 0);
      const height = Math.max(0, y(base) - y(base + value));
      svg.append(s("rect", { class: `area ${each.cls}`, x: middle(i) - thick / 2, y: y(base + value), width: thick, height: Math.max(0, height - (height > 3 ? 1 : 0)) }));
      const control = each.control?.[i];
      if (control !== null && control !== undefined) {
        const at = y(base + Math.max(0, control));
        svg.append(s("line", { class: "controlmark", x1: middle(i) - thick / 2 - 1, x2: middle(i) + thick / 2 + 1, y1: at, y2: at }));
      }
      base += value;
    }
  });
}

function lines(svg, { x, series }, y, middle) {
  for (const each of series) {
    if (each.low && each.high) band(svg, x, each, y, middle, each.bandOf === "control" ? "dashband" : each.cls);
  }
  for (const each of series) {
    if (each.control) svg.append(s("path", { class: `line control ${each.cls}`, d: path(each.control, y, middle) }));
    svg.append(s("path", { class: `line ${each.cls}`, d: path(each.values, y, middle) }));
    if (x.length <= 60 && !each.flat) {
      each.values.forEach((value, i) => {
        if (drawable(value, y)) svg.append(s("circle", { class: `dot ${each.cls}`, cx: middle(i), cy: y(value), r: x.length > 34 ? 2 : 2.8 }));
      });
    }
  }
}

const drawable = (value, y) => value !== null && value !== undefined && (!y.log || value > 0);

function band(svg, x, each, y, middle, cls) {
  const there = x.map((_, i) => i).filter((i) => drawable(each.low[i], y) && drawable(each.high[i], y));
  if (there.length < 2) return;
  const upper = there.map((i) => `${middle(i).toFixed(1)},${y(each.high[i]).toFixed(1)}`);
  const lower = there.reverse().map((i) => `${middle(i).toFixed(1)},${y(each.low[i]).toFixed(1)}`);
  svg.append(s("polygon", { class: `band ${cls}`, points: [...upper, ...lower].join(" ") }));
}

function path(values, y, middle) {
  let text = "", pen = false;
  values.forEach((value, i) => {
    if (!drawable(value, y)) { pen = false; return; }
    text += `${pen ? "L" : "M"}${middle(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  });
  return text;
}

function extent({ series, log }) {
  const all = series.flatMap((each) => [each.values, each.control, each.low, each.high].flatMap((values) => values || []))
    .filter((value) => value !== null && value !== undefined && Number.isFinite(value) && (!log || value > 0));
  if (!all.length) return scale(0, 1, false);
  const low = Math.min(...all), high = Math.max(...all);
  if (log) return scale(low, high, true);
  return scale(low >= 0 && low < 0.6 * high ? 0 : low, high <= 0 ? 0 : high, false);
}

function scale(low, high, log) {
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const ticks = log ? logTicks(low, high) : linearTicks(low, high);
  if (!log) { low = Math.min(low, ticks[0]); high = Math.max(high, ticks.at(-1)); }
  const place = log ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => (value - low) / (high - low);
  const y = (value) => HEIGHT - BOTTOM - place(value) * (HEIGHT - TOP - BOTTOM);
  y.ticks = ticks;
  y.log = log;
  return y;
}

function linearTicks(low, high) {
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const ticks = [];
  for (let n = Math.floor(low / step + 1e-9); n * step < high + step * 0.999; n += 1) ticks.push(Number((n * step).toPrecision(10)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const each of high / low > 300 ? [1] : high / low > 12 ? [1, 3] : [1, 2, 5]) ticks.push(each * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length ? inside : [low, high];
}

function listen(svg, chart, cursor, middle, step) {
  const { x, series, format, xTitle } = chart;
  const point = (i) => {
    chart.at = i;
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x", middle(i) - Math.max(step, 2) / 2);
    const frame = svg.getBoundingClientRect();
    const controls = series.some((each) => each.control);
    showTip(frame.left + middle(i), frame.top + TOP + 30,
      h("strong", {}, `${xTitle} ${x[i]}`),
      h("table", { class: "tiptable" },
        controls ? h("tr", {}, h("td", {}), h("td", {}), h("td", { class: "num soft" }, "value"), h("td", { class: "num soft" }, "control")) : null,
        [...series].reverse().map((each) => h("tr", {}, h("td", {}, h("span", { class: `swatch ${each.cls}` })), h("td", {}, each.name),
          h("td", { class: "num" }, format(each.values[i])), controls ? h("td", { class: "num soft" }, each.control ? format(each.control[i]) : "") : null,
          each.low && each.high ? h("td", { class: "num soft" }, `${format(each.low[i])} to ${format(each.high[i])}`) : null))));
  };
  const leave = () => { chart.at = null; cursor.setAttribute("visibility", "hidden"); hideTip(); };
  svg.addEventListener("pointermove", (event) => {
    const i = Math.floor((event.clientX - svg.getBoundingClientRect().left - LEFT) / step);
    if (i >= 0 && i < x.length) point(i); else leave();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    point(Math.max(0, Math.min(x.length - 1, (chart.at ?? (move > 0 ? -1 : x.length)) + move)));
  });
}

function describe({ x, xTitle, series, format }) {
  const ends = series.map((each) => `${each.name} from ${format(each.values[0])} to ${format(each.values.at(-1))}`);
  return `Chart by ${xTitle}, ${x[0]} to ${x.at(-1)}: ${ends.join("; ")}. Arrow keys read single values.`;
}
