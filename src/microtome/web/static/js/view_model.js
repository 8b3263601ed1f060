// The model card: what model, what text, how it ran, and the certificate that the numbers are the model's own.

import { coded, h, empty } from "./dom.js";
import { capital, count, number, plural } from "./format.js";
import { href } from "./router.js";
import { spell } from "./tokens.js";
import { missing } from "./view_findings.js";

export async function render({ source, summary, el }) {
  el.append(h("h1", {}, spell(summary.name || "Model")));
  el.append(h("p", { class: "lede" }, lede(summary)));
  el.append(h("div", { class: "cards" }, summary.sections.map(card), summary.bases.length ? unitsCard(summary) : null, summary.runs.length > 1 ? runsCard(summary) : null));
  if (summary.certificate) el.append(certificate(summary.certificate));
  else el.append(h("h2", {}, "Certificate"), empty("No certificate is recorded for this run."));
  if (summary.skipped.length) el.append(skipped(summary.skipped));
  if (summary.absent.length) {
    el.append(h("h2", {}, missing(summary)), h("dl", { class: "absent" }, summary.absent.map((each) => [h("dt", {}, spell(each.what)), h("dd", {}, coded(each.why, spell))])));
  }
  el.append(h("h2", {}, "Tables"), h("p", { class: "read" }, source.sql
    ? coded("An atlas is a folder of Parquet files. Anything that reads Parquet reads it; `microtome sql` asks DuckDB.")
    : "This is a static copy: every page works, but SQL needs the atlas folder itself."),
  h("div", { class: "scroll" }, h("table", { class: "plain narrow" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Table"), h("th", { scope: "col", class: "num" }, "Rows"))),
    h("tbody", {}, Object.entries(summary.tables).map(([name, rows]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), h("td", { class: "num" }, count(rows))))))));
}

function lede(summary) {
  const checks = summary.certificate?.checks ?? [];
  const passed = checks.filter((check) => check.passed).length;
  const parts = [];
  if (checks.length) parts.push(passed === checks.length ? `All ${count(checks.length)} identities checked at load hold within tolerance.` : `${passed} of ${plural(checks.length, "identity", "identities")} hold.`);
  const units = summary.bases.reduce((sum, basis) => sum + basis.units, 0);
  if (units) parts.push(`${plural(units, "unit")} can be browsed.`);
  return parts.join(" ");
}

function card(section) {
  return h("section", { class: "panel" }, h("h2", {}, spell(section.title)),
    section.note ? h("p", { class: "read" }, section.note) : null, facts(section.facts));
}

function facts(list) {
  return h("dl", { class: "facts" }, list.map((fact) => [
    h("dt", {}, capital(fact.name)),
    h("dd", { class: fact.mono ? "mono" : null, title: fact.mono ? fact.value : null }, h("bdi", {}, spell(fact.mono && fact.value.length > 20 ? `${fact.value.slice(0, 16)}\u2026` : fact.value))),
  ]));
}

function unitsCard(summary) {
  return h("section", { class: "panel" }, h("h2", {}, "Units"), h("dl", { class: "facts" }, summary.bases.map((basis) => [
    h("dt", {}, basis.label),
    h("dd", {}, h("a", { href: href("units", "", { basis: basis.basis }) }, count(basis.units)), basis.layers.length ? ` in ${plural(basis.layers.length, "layer")}` : ""),
  ])));
}

function runsCard(summary) {
  return h("section", { class: "panel" }, h("h2", {}, "Runs"), h("dl", { class: "facts" }, summary.runs.map((run) => [
    h("dt", {}, run.name === summary.run ? h("b", {}, run.name) : h("a", { href: href("model", "", { run: run.name }) }, run.name)),
    h("dd", {}, run.text === null ? "weights alone" : ["over ", h("bdi", {}, spell(run.text))], run.complete ? "" : ", not complete"),
  ])));
}

function certificate(record) {
  const box = h("section", {}, h("h2", {}, "Certificate"),
    h("p", { class: "read" }, "Identities that tie what is measured to what the model computes, checked on this model before anything was measured. Error is relative; the bar is its place on a logarithmic scale, the tick the tolerance."));
  if (record.facts.length) box.append(h("div", { class: "narrowfacts" }, facts(record.facts)));
  if (record.checks.length) box.append(h("div", { class: "scroll" }, h("table", { class: "plain certificate" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Identity"), h("th", { scope: "col", class: "where" }, "Where"), h("th", { scope: "col", class: "num" }, "Error"), h("th", { scope: "col", class: "wide" }, ""), h("th", { scope: "col", class: "num" }, "Tolerance"), h("th", { scope: "col" }, "Holds"))),
    h("tbody", {}, record.checks.map(check)))));
  return box;
}

function check(row) {
  const log = (value) => Math.max(0, Math.min(1, (Math.log10(Math.max(value, 1e-12)) + 12) / 12));
  return h("tr", {},
    h("th", { scope: "row" }, spell(row.identity)),
    h("td", { class: "soft where" }, spell(row.place)),
    h("td", { class: "num" }, number(row.error, 2)),
    h("td", { class: "wide" }, row.error === null ? null : h("span", { class: "meter", "aria-hidden": "true" },
      h("span", { class: "fill", vars: { width: `${100 * log(row.error)}%` } }), row.tolerance ? h("span", { class: "tick", vars: { left: `${100 * log(row.tolerance)}%` } }) : null)),
    h("td", { class: "num soft" }, number(row.tolerance, 2)),
    h("td", { class: row.passed === false ? "bad" : "good" }, row.passed === null ? "\u2013" : row.passed ? "\u2713 yes" : "\u2717 no"));
}

function skipped(rows) {
  return h("section", {}, h("h2", {}, "Skipped documents"), h("div", { class: "scroll" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Document"), h("th", { scope: "col" }, "Why"))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, spell(row.name))), h("td", {}, spell(row.value))))))));
}
