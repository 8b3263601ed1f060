// Findings first: what survives its control, most telling first, and what is absent and why.

import { coded, h, empty } from "./dom.js";
import { brief, capital, count, qvalue } from "./format.js";
import { against } from "./glyphs.js";
import { href, unitHref, amend } from "./router.js";
import { spell } from "./tokens.js";

const FIRST = 4;

const LENSES = {
  geometry: "How do hidden states split into mean, position, context and residual?",
  factors: "Of which sparse directions are hidden states sums?",
  neurons: "What does each feed-forward unit detect, store and promote?",
  facts: "Which units know the facts that were given?",
  labels: "Which units tell the labels that words were given?",
  vocabulary: "What do the parameters say, read in the model\u2019s own vocabulary?",
};

export async function render({ source, summary, params, el }) {
  const findings = await source.findings();
  const lenses = [...new Set(findings.map((each) => each.lens))].sort((a, b) => order(a) - order(b) || a.localeCompare(b));
  el.append(
    h("h1", {}, "Findings"),
    h("p", { class: "lede" }, findings.length
      ? ["What stands out, each beside what it was compared with: ", h("span", { class: "key" }, against(1, 0.35, { width: 64 })), " the filled mark is the model, the open one its control. q is the expected share of false results among those at least as strong."]
      : "What stands out against its control appears here first."));
  if (!findings.length) {
    el.append(empty(summary.complete
      ? "No result of this run survives its control, or none of its lenses writes findings."
      : "Nothing yet: this run is not complete. The other views show what is there."));
  }
  for (const lens of lenses) el.append(section(lens, findings.filter((each) => each.lens === lens), params));
  if (summary.absent.length) el.append(absent(summary));
}

const order = (lens) => { const place = Object.keys(LENSES).indexOf(lens); return place < 0 ? 99 : place; };

function section(lens, findings, params) {
  const kinds = [...new Set(findings.map((each) => each.kind))];
  const many = kinds.filter((kind) => findings.filter((each) => each.kind === kind).length > 1);
  const single = findings.filter((each) => !many.includes(each.kind));
  const groups = many.map((kind) => [kind, findings.filter((each) => each.kind === kind)]);
  if (single.length) groups.push(["", single]);
  groups.sort((a, b) => a[1][0].rank - b[1][0].rank);
  return h("section", { class: "lens", "aria-labelledby": `lens-${lens}` },
    h("div", { class: "lenshead" }, h("h2", { id: `lens-${lens}` }, capital(lens)), LENSES[lens] ? h("p", { class: "soft" }, LENSES[lens]) : null),
    h("div", {}, groups.map(([kind, members]) => group(kind, members, groups.length, params, `${lens}: ${kind}`))));
}

// Findings of one kind: the first few, and the rest on demand.
function group(kind, findings, kinds, params, key) {
  const list = h("ol", { class: "findings" });
  const show = (n) => { for (const each of findings.slice(list.children.length, n)) list.append(row(each)); };
  show(params.get("all") === key ? findings.length : kinds === 1 ? 2 * FIRST : FIRST);
  const rest = findings.length - list.children.length;
  const more = rest > 0
    ? h("button", { class: "more", type: "button", onclick: () => { show(findings.length); more.remove(); amend({ all: key }); } }, `Show ${count(rest)} more`)
    : null;
  const title = kinds > 1 && kind ? h("h3", { class: "kind" }, capital(kind), " ", h("span", { class: "soft" }, count(findings.length))) : null;
  return h("div", { class: "kindgroup" }, title, list, more);
}

function row(finding) {
  const where = finding.unit ? unitHref(finding.unit) : place(finding);
  return h("li", { class: "finding" },
    h("div", { class: "sentence" }, h("bdi", {}, spell(sentence(finding.sentence)))),
    h("div", { class: "evidence" },
      against(finding.value, finding.control),
      h("span", { class: "figures" },
        h("b", {}, brief(finding.value)),
        finding.control === null ? h("span", { class: "soft" }, "no control") : h("span", { class: "soft" }, `${brief(finding.control)} ${finding.control_kind || "control"}`),
        finding.q === null ? null : h("span", { class: "soft" }, qvalue(finding.q)))),
    where ? h("a", { class: "go", href: where }, h("bdi", {}, spell(finding.unit || finding.subject))) : h("span", { class: "go none" }, h("bdi", {}, spell(finding.subject))));
}

// A capital letter at the start, unless an address is there.
export const sentence = (text) => (/^[a-z_]+[.@]/.test(text) ? text : capital(text));

function place(finding) {
  const layer = /^layer (\d+)$/.exec(finding.subject);
  if (layer) return href("units", "", { layer: layer[1] });
  return /^(resid|embed|final_norm|attn|mlp|pos_embed|logits)/.test(finding.subject) ? href("layers") : null;
}

function absent(summary) {
  return h("section", { class: "lens" },
    h("div", { class: "lenshead" }, h("h2", {}, missing(summary)), h("p", { class: "soft" }, "And why, or how to have it.")),
    h("dl", { class: "absent" }, summary.absent.map((each) => [h("dt", {}, spell(each.what)), h("dd", {}, coded(each.why, spell))])));
}

export const missing = (summary) => (summary.runs.length > 1 ? "Not in this run" : "Not in this atlas");
