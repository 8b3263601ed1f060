// The unit browser: filter, sort, search by token, page.

import { append, h, empty } from "./dom.js";
import { count, number, plural } from "./format.js";
import { go, href, unitHref } from "./router.js";
import { chip } from "./tokens.js";

const PAGE = 50;
const SHOWN = ["token_share_top", "read_top", "kurtosis", "density", "max"];
const FIRST_SORT = ["read_top", "token_share_top", "kurtosis"];
const MATCHES = { any: "writes or fires on it", promotes: "promotes it", suppresses: "suppresses it", fires: "fires on it" };

export async function render({ source, summary, params, el, signal }) {
  if (!summary.bases.length) {
    el.append(h("h1", {}, "Units"), empty("No units are in this atlas yet."));
    return;
  }
  const state = read(summary, params);
  const result = await source.units({ ...state, offset: state.page * PAGE, limit: PAGE }, signal);
  el.append(h("h1", {}, "Units"), lede(state, result, summary), filters(summary, state, result));
  if (result.search) el.append(suggestions(result.search, state));
  if (!result.rows.length) {
    el.append(empty(state.token && !result.search?.tokens.length
      ? "No token of this vocabulary is that word. It may be written with several tokens: try a part of it."
      : "No unit fits. Take a filter away."));
    return;
  }
  append(el, [table(result, state), pager(result, state)]);
}

function read(summary, params) {
  const known = summary.bases.map((basis) => basis.basis);
  const basis = known.includes(params.get("basis")) ? params.get("basis") : known.includes("neurons") ? "neurons" : known[0];
  const card = summary.bases.find((each) => each.basis === basis);
  const token = params.get("token") || "";
  const names = card.columns.map((column) => column.name);
  const fallback = token ? "match" : FIRST_SORT.find((name) => names.includes(name)) ?? "unit";
  const sort = ["unit", ...(token ? ["match"] : []), ...names].includes(params.get("sort")) ? params.get("sort") : fallback;
  const layer = params.get("layer");
  return {
    basis, token, sort, layer: layer !== null && card.layers.includes(Number(layer)) ? layer : "",
    order: params.get("order") === "up" ? "up" : "down", match: MATCHES[params.get("match")] ? params.get("match") : "any",
    page: Math.max(0, Number.parseInt(params.get("page") || "1", 10) - 1 || 0),
  };
}

const link = (state, change = {}) => {
  const next = { ...state, page: 0, ...change };
  return href("units", "", {
    basis: next.basis, layer: next.layer, token: next.token, match: next.match === "any" ? "" : next.match, sort: next.sort,
    order: next.order === "up" ? "up" : "", page: next.page ? next.page + 1 : "",
  });
};

function lede(state, result, summary) {
  const words = [plural(result.total, "unit")];
  if (state.token) words.push(" whose tokens or top contexts have ", chip(state.token));
  return h("p", { class: "lede" }, words, `. Open one to see what it ${summary.tables.contexts ? "fires on and what it " : ""}writes.`);
}

function filters(summary, state, result) {
  const card = summary.bases.find((each) => each.basis === state.basis);
  const pick = (label, name, options, chosen) => h("label", { class: "field" }, h("span", {}, label),
    h("select", { name, onchange: (event) => go(link(state, { [name]: event.target.value, ...(name === "basis" ? { layer: "", sort: "" } : {}) })) },
      options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text))));
  return h("div", { class: "filters" },
    summary.bases.length > 1 ? pick("Basis", "basis", summary.bases.map((each) => [each.basis, each.label]), state.basis) : null,
    card.layers.length ? pick("Layer", "layer", [["", "all layers"], ...card.layers.map((layer) => [layer, `layer ${layer}`])], state.layer) : null,
    pick("Sort by", "sort", [...(state.token ? [["match", "best match"]] : []), ...result.columns.map((column) => [column.name, column.label]), ["unit", "address"]], state.sort),
    h("a", { class: "button", href: link(state, { order: state.order === "up" ? "down" : "up" }), title: "turn the order round" }, state.order === "up" ? "\u2191 smallest first" : "\u2193 largest first"),
    h("form", { class: "field grow", onsubmit: (event) => { event.preventDefault(); go(link(state, { token: event.target.elements.token.value.trim(), sort: "" })); } },
      h("label", { for: "tokenfilter" }, "Has the word"),
      h("input", { id: "tokenfilter", name: "token", type: "search", value: state.token, maxlength: 100, placeholder: "liberty", autocomplete: "off", spellcheck: "false" })),
    state.token ? pick("Match", "match", Object.entries(MATCHES), state.match) : null);
}

function suggestions(search, state) {
  const list = (title, tokens) => (tokens.length ? h("div", { class: "suggest" }, h("span", { class: "soft" }, title), " ",
    tokens.map((each) => [h("a", { class: "plainchip", href: link(state, { token: each.text.trim(), sort: "match" }) }, chip(each.text)), " "])) : null);
  return h("div", {}, list(search.tokens.length ? "Tokens taken:" : "", search.tokens), list(search.tokens.length ? "Longer tokens:" : "Tokens that contain it:", search.near.slice(0, 14)));
}

function table(result, state) {
  const ranked = [...SHOWN, ...result.columns.map((column) => column.name)];
  const chosen = [...new Set([state.sort, ...ranked])].filter((name) => result.columns.some((column) => column.name === name)).slice(0, state.token ? 4 : 5);
  const columns = result.columns.map((column, n) => ({ ...column, n })).filter((column) => chosen.includes(column.name));
  const head = (column) => h("th", { scope: "col", class: "num", title: column.meaning || null, "aria-sort": state.sort === column.name ? (state.order === "up" ? "ascending" : "descending") : null },
    h("a", { href: link(state, { sort: column.name, order: state.sort === column.name && state.order === "down" ? "up" : "down" }) }, column.label, state.sort === column.name ? (state.order === "up" ? " \u2191" : " \u2193") : ""));
  return h("div", { class: "scroll" }, h("table", { class: "units" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Unit"), state.token ? h("th", { scope: "col" }, "Match") : null,
      h("th", { scope: "col", title: "tokens at which its top contexts are" }, "Fires on"), h("th", { scope: "col", title: "tokens that the vector it writes promotes most" }, "Promotes"), columns.map(head))),
    h("tbody", {}, result.rows.map((row) => h("tr", { onclick: (event) => { if (!event.target.closest("a") && !getSelection().toString()) go(unitHref(row.unit)); } },
      h("th", { scope: "row" }, h("a", { class: "address", href: unitHref(row.unit) }, row.unit)),
      state.token ? h("td", { class: "match" }, match(row.match)) : null,
      h("td", { class: "chips", "data-label": row.fires.length ? "fires on" : null }, row.fires.map((text) => [chip(text), " "])),
      h("td", { class: "chips", "data-label": row.promotes.length ? "promotes" : null }, row.promotes.map((text) => [chip(text), " "])),
      columns.map((column) => h("td", { class: `num${column.name === state.sort ? " sorted" : ""}`, "data-label": column.label }, number(row.values[column.n]))))))));
}

function match(found) {
  if (!found) return null;
  return [
    found.fires ? h("span", { class: "tag fires" }, `fires ${found.fires}/${found.of}`) : null,
    found.promotes !== null ? h("span", { class: "tag plus" }, `promotes #${found.promotes + 1}`) : null,
    found.suppresses !== null ? h("span", { class: "tag minus" }, `suppresses #${found.suppresses + 1}`) : null,
  ];
}

function pager(result, state) {
  const pages = Math.ceil(result.total / PAGE);
  if (pages <= 1) return null;
  const step = (text, page, on) => (on ? h("a", { class: "button", href: link(state, { page }) }, text) : h("span", { class: "button off" }, text));
  return h("nav", { class: "pager", "aria-label": "Pages" },
    step("\u2190 Previous", state.page - 1, state.page > 0),
    h("span", { class: "soft" }, `${count(result.offset + 1)}\u2013${count(result.offset + result.rows.length)} of ${count(result.total)}`),
    step("Next \u2192", state.page + 1, state.page + 1 < pages));
}
