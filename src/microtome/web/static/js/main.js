// The page: read the address, draw its view, watch a build that is still running.

import { append, clear, h, hideTip, problem } from "./dom.js";
import { count, duration } from "./format.js";
import { ADDRESS, go, href, read, unitHref } from "./router.js";
import { openSource } from "./source.js";
import * as findings from "./view_findings.js";
import * as layers from "./view_layers.js";
import * as model from "./view_model.js";
import * as unit from "./view_unit.js";
import * as units from "./view_units.js";

const VIEWS = { findings, model, layers, units, unit };
const TABS = { findings: "Findings", model: "Model", layers: "Layers", units: "Units" };
const WATCH = 2500;

const source = openSource();
const content = document.getElementById("content");
const strip = document.getElementById("strip");
let summary = null;
let drawing = new AbortController();

function tabs(view) {
  const current = view === "unit" ? "units" : view;
  clear(document.getElementById("nav")).append(...Object.entries(TABS).map(([name, text]) => h("a", { href: href(name), "aria-current": name === current ? "page" : null }, text)));
}

async function draw() {
  const { view, rest, params } = read();
  drawing.abort();
  drawing = new AbortController();
  const { signal } = drawing;
  hideTip();
  tabs(view);
  content.setAttribute("aria-busy", "true");
  const late = setTimeout(() => { if (!signal.aborted) clear(content).append(h("p", { class: "loading" }, "Reading the atlas\u2026")); }, 250);
  const el = h("div", { class: `view ${view}` });
  try {
    summary = summary || await source.summary();
    named();
    document.title = `${TABS[view] || "microtome"} \u00b7 ${summary.name || "microtome"}`;
    for (const each of summary.problems) el.append(problem(each));
    if (!VIEWS[view]) throw { what: "This address", why: "there is no such view", instead: "choose one above" };
    await VIEWS[view].render({ source, summary, rest, params, el, signal });
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (error instanceof Error) console.error(error);
    el.append(problem(error));
  } finally {
    clearTimeout(late);
  }
  if (signal.aborted) return;
  clear(content).append(el);
  content.setAttribute("aria-busy", "false");
  content.dataset.ready = String(Number(content.dataset.ready || 0) + 1);
}

function named() {
  clear(document.getElementById("model")).append(h("bdi", {}, summary.name));
}

async function watch() {
  try {
    const { signature, progress } = await source.progress();
    const changed = summary && signature !== summary.signature;
    strip.hidden = !progress && !changed;
    if (!strip.hidden) append(clear(strip), [progress ? line(progress) : null, changed ? h("button", { class: "button", type: "button", onclick: renew }, "Show new results") : null]);
    const waiting = summary && (!summary.bases.length || !Object.keys(summary.tables).length);
    if (changed && waiting) await renew();
    setTimeout(watch, progress || (summary && !summary.complete) ? WATCH : 6 * WATCH);
  } catch {
    setTimeout(watch, 6 * WATCH);
  }
}

async function renew() {
  summary = null;
  strip.hidden = true;
  await draw();
}

function line(progress) {
  const share = progress.total ? Math.min(1, progress.done / progress.total) : null;
  const facts = [
    progress.total ? `${count(progress.done)} of ${count(progress.total)}` : "",
    progress.tokens_per_second ? `${count(Math.round(progress.tokens_per_second))} tokens/s` : "",
    progress.eta_seconds ? `${duration(progress.eta_seconds)} left` : "",
  ].filter(Boolean);
  return h("span", { class: "progress" }, h("b", {}, `Building: ${progress.stage}`),
    share === null ? null : h("progress", { max: 1, value: share, "aria-label": "progress of the build" }), h("span", { class: "soft" }, facts.join(" \u00b7 ")));
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const box = document.getElementById("word");
  const text = box.value.trim();
  if (!text) return;
  go(ADDRESS.test(text) ? unitHref(text) : href("units", "", { token: text }));
  box.value = "";
  box.blur();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, select, textarea")) {
    event.preventDefault();
    document.getElementById("word").focus();
  }
  if (event.key === "Escape") hideTip();
});

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); content.focus(); });

addEventListener("hashchange", () => { draw().then(() => scrollTo(0, 0)); });
await draw();
if (source.live) watch();
