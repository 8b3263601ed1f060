// The page: read the address, draw its view, watch a build that is still running.

import { append, clear, h, hideTip, problem } from "./dom.js";
import { count, duration, plural } from "./format.js";
import { ADDRESS, amend, go, href, read, speakOf, unitHref } from "./router.js";
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
const picker = document.getElementById("run");
const summaries = new Map();
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
  content.setAttribute("aria-busy", "true");
  const late = setTimeout(() => { if (!signal.aborted) clear(content).append(h("p", { class: "loading" }, "Reading the atlas\u2026")); }, 250);
  const el = h("div", { class: `view ${view}` });
  const run = params.get("run") || "";
  try {
    const found = await about(run);
    if (signal.aborted) return;
    head(found, view);
    for (const each of found.problems) el.append(problem(each));
    if (!VIEWS[view]) throw { what: "This address", why: "there is no such view", instead: "choose one above" };
    await VIEWS[view].render({ source: source.of(found.run), summary: found, rest, params, el, signal });
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

// The summary of a run; where the atlas has no such run, the others are still offered above.
async function about(run) {
  try {
    if (!summaries.has(run)) summaries.set(run, await source.of(run).summary());
  } catch (error) {
    if (run) head({ ...await about(""), run: "" }, read().view);
    throw error;
  }
  return summaries.get(run);
}

// What is above every view: the model, its runs, the tabs. From here on links speak of this run.
function head(found, view) {
  summary = found;
  const several = found.runs.length > 1;
  speakOf(several ? found.run : "");
  if (several && found.run && !read().params.has("run")) amend({ run: found.run });
  tabs(view);
  document.title = `${TABS[view] || "microtome"} \u00b7 ${[found.name || "microtome", several ? found.run : ""].filter(Boolean).join(", ")}`;
  clear(document.getElementById("model")).append(h("bdi", {}, found.name));
  document.getElementById("start").href = href("findings");
  document.getElementById("runs").hidden = !several;
  const options = found.runs.map((each) => [each.name, [each.name, note(each)].filter(Boolean).join(", ")]);
  if (picker.dataset.options !== JSON.stringify(options)) {
    picker.dataset.options = JSON.stringify(options);
    clear(picker).append(...options.map(([value, text]) => h("option", { value }, text)));
  }
  picker.value = found.run;
}

const note = (run) => [run.text === null ? "weights alone" : "", run.complete ? "" : "not complete"].filter(Boolean).join(", ");

picker.addEventListener("change", () => {
  const { view, rest, params } = read();
  go(href(view, rest, { ...Object.fromEntries(params), page: "", run: picker.value }));
});

async function watch() {
  try {
    const { signature, damaged, progress } = await source.progress();
    const changed = summary && signature !== summary.signature;
    strip.hidden = !progress && !changed;
    if (!strip.hidden) append(clear(strip), [progress ? line(progress) : null, changed ? h("button", { class: "button", type: "button", onclick: renew }, "Show new results") : null]);
    const waiting = summary && (!summary.bases.length || !Object.keys(summary.tables).length);
    if (changed && (waiting || damaged !== summary.damaged)) await renew();
    setTimeout(watch, progress || (summary && !summary.complete) ? WATCH : 6 * WATCH);
  } catch {
    setTimeout(watch, 6 * WATCH);
  }
}

async function renew() {
  summaries.clear();
  strip.hidden = true;
  await draw();
}

function line(progress) {
  const share = progress.total ? Math.min(1, progress.done / progress.total) : null;
  const facts = [
    progress.total ? `${count(progress.done)} of ${plural(progress.total, "window")}` : "",
    progress.tokens_per_second ? `${count(Math.round(progress.tokens_per_second))} tokens/s` : "",
    progress.eta_seconds ? `${duration(progress.eta_seconds)} left` : "",
  ].filter(Boolean);
  // which run it is, is known while windows are counted and no other run was left unfinished
  const unfinished = summary && summary.runs.length > 1 && progress.total ? summary.runs.filter((run) => !run.complete) : [];
  const what = unfinished.length === 1 ? `Building ${unfinished[0].name}` : "Building";
  return h("span", { class: "progress" }, h("b", {}, `${what}: ${progress.stage}${progress.total ? " pass" : ""}`),
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
