// The atlas as an export: gzipped JSON shards, and what a server does with SQL done here over columns.

const kept = new Map();

// A shard, fetched once. Some servers unpack .gz on the way: the first two bytes tell.
function shard(path) {
  if (!kept.has(path)) {
    kept.set(path, load(path).catch((error) => { kept.delete(path); throw error; }));
    if (kept.size > 400) kept.delete(kept.keys().next().value);
  }
  return kept.get(path);
}

async function load(path) {
  let response;
  try {
    response = await fetch(`data/${path}.json.gz`);
  } catch {
    throw { what: "The data of this page", why: "it cannot be fetched; opened as a file a page may not read its own folder", instead: "serve the folder with a web server, for example python3 -m http.server" };
  }
  if (!response.ok) throw { what: `data/${path}.json.gz`, why: `the web server answered ${response.status}`, instead: "copy the whole export folder to the server" };
  const bytes = await response.arrayBuffer();
  const head = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  if (head[0] !== 0x1f || head[1] !== 0x8b) return JSON.parse(new TextDecoder().decode(bytes));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

// The shards of a run, which is a folder by its number.
async function folder(run) {
  const runs = await shard("runs"), number = run ? runs.indexOf(run) : 0;
  if (number < 0) throw { what: `run ${run.slice(0, 80)}`, why: "this atlas has no run of that name", instead: `choose one of ${runs.join(", ")}` };
  return (path) => shard(`${number}/${path}`);
}

const total = (places) => { const last = places.groups.at(-1); return last ? last.place + last.count : 0; };
const address = (group, place) => (group.number === null ? group.prefix : `${group.prefix}${group.number + place - group.place}`);

function groupAt(places, place) {
  let low = 0, high = places.groups.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (places.groups[middle].place <= place) low = middle; else high = middle - 1;
  }
  return places.groups[low];
}

function placeOf(places, unit) {
  for (const group of places.groups) {
    if (!unit.startsWith(group.prefix)) continue;
    if (group.number === null && unit === group.prefix) return group.place;
    const rest = unit.slice(group.prefix.length);
    if (group.number === null || !/^(0|[1-9]\d*)$/.test(rest)) continue;
    const place = Number(rest) - group.number;
    if (place >= 0 && place < group.count) return group.place + place;
  }
  throw { what: `unit ${unit.slice(0, 80)}`, why: "this atlas has no unit of that address", instead: "look for it in the unit browser" };
}

const bare = (text) => text.replace(/^##/, "").trim().toLowerCase();

async function findTokens(word) {
  const wanted = bare(word), texts = await shard("vocabulary");
  if (!wanted) return { tokens: [], near: [] };
  const tokens = [], near = [];
  texts.forEach((text, token) => {
    const each = bare(text);
    if (each === wanted) tokens.push({ token, text });
    else if (each.includes(wanted)) near.push([each.length, token, text]);
  });
  near.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return { tokens, near: near.slice(0, 24).map(([, token, text]) => ({ token, text })) };
}

// Best ranks and times by place of the units that have to do with tokens.
async function matching(mine, search, where, places) {
  const found = new Map();
  for (const { token } of search.tokens) {
    for (const [place, kind, number] of (await mine(`search/${token % places.tokens}`))[token] || []) {
      if (where !== "any" && where !== ["promotes", "suppresses", "fires"][kind]) continue;
      const match = found.get(place) || { promotes: null, suppresses: null, fires: null, of: null };
      if (kind === 2) match.fires = (match.fires || 0) + number;
      else { const name = kind ? "suppresses" : "promotes"; match[name] = match[name] === null ? number : Math.min(match[name], number); }
      found.set(place, match);
    }
  }
  return found;
}

const fit = (match, of) => Math.max(
  match.promotes === null ? 0 : 1 / (1 + match.promotes), match.suppresses === null ? 0 : 1 / (1 + match.suppresses), match.fires === null ? 0 : match.fires / of);

async function units(mine, query) {
  const [places, summary, index, tokens] = await Promise.all([shard("places"), mine("summary"), mine("columns/index"), mine("columns/tokens")]);
  const cards = summary.bases.filter((card) => !query.basis || card.basis === query.basis);
  const columns = index.stats.map((name) => cards.flatMap((card) => card.columns).find((column) => column.name === name)).filter(Boolean);
  const search = query.token?.trim() ? await findTokens(query.token) : null;
  const found = search ? await matching(mine, search, query.match || "any", places) : null;
  const fits = (group) => (!query.basis || group.basis === query.basis) && (query.layer === "" || query.layer === undefined || query.layer === null || group.layer === Number(query.layer));
  let chosen = [];
  if (found) chosen = [...found.keys()].filter((place) => fits(groupAt(places, place))).sort((a, b) => a - b);
  else for (const group of places.groups) if (fits(group)) for (let n = 0; n < group.count; n += 1) chosen.push(group.place + n);
  const column = async (name) => (await mine(`columns/${index.stats.indexOf(name)}`)).values;
  const down = query.order !== "up";
  if (index.stats.includes(query.sort)) {
    const values = await column(query.sort);
    const there = chosen.filter((place) => values[place] !== null), missing = chosen.filter((place) => values[place] === null);
    there.sort((a, b) => (down ? values[b] - values[a] : values[a] - values[b]) || a - b);
    chosen = [...there, ...missing];
  } else if (query.sort === "match" && found) {
    chosen.sort((a, b) => fit(found.get(b), tokens.total[b]) - fit(found.get(a), tokens.total[a]) || (found.get(b).fires || 0) - (found.get(a).fires || 0) || a - b);
  } else if (!down) chosen.reverse();
  const shown = chosen.slice(query.offset, query.offset + query.limit);
  const [texts, ...values] = await Promise.all([shard("vocabulary"), ...columns.map((each) => column(each.name))]);
  const spell = (ids) => (ids || []).map((token) => texts[token] ?? `[${token}]`);
  return {
    total: chosen.length, offset: query.offset, columns, search,
    rows: shown.map((place) => {
      const group = groupAt(places, place);
      return {
        unit: address(group, place), layer: group.layer, promotes: spell(tokens.promotes[place]), fires: spell(tokens.fires[place]),
        values: values.map((each) => each[place]), match: found ? { ...found.get(place), of: tokens.total[place] } : null,
      };
    }),
  };
}

async function unit(mine, name) {
  const places = await shard("places"), place = placeOf(places, name);
  const page = (await mine(`units/${Math.floor(place / places.per)}`))[place % places.per];
  if (!page.contexts.length) return page;
  const documents = await mine("documents");
  return { ...page, of: total(places), contexts: await Promise.all(page.contexts.map((row) => context(mine, row, documents, places))) };
}

// Activations are signed bytes in base64.
const decoded = (text) => Array.from(Int8Array.from(atob(text), (letter) => letter.charCodeAt(0)));

async function context(mine, [end, half, rank, site, value, scale, window, position, first, activations], documents, places) {
  const [document, texts, starts, ends] = (await mine(`windows/${Math.floor(window / places.windows)}`))[window];
  const there = decoded(activations).map((code, j) => [first + j, code]).filter(([at, code]) => code !== -128 && at < texts.length);
  const known = there.filter(([at]) => starts[at] >= 0);
  return {
    end, half, rank, site, value, scale, window, position, centre: Math.max(0, there.findIndex(([at]) => at === position)),
    pieces: there.map(([at]) => texts[at]), codes: there.map(([, code]) => code), document, name: documents[document][1], label: documents[document][2],
    begin: known.length ? Math.min(...known.map(([at]) => starts[at])) : null, finish: known.length ? Math.max(...known.map(([at]) => ends[at])) : null,
  };
}

// Characters are counted as code points, as in the tables.
async function document_(mine, run, context) {
  const places = await shard("places"), [, name, label, half, tokens, length] = (await mine("documents"))[context.document];
  if (length === null) throw { what: "This document", why: "its text is not in this atlas", instead: "open another context" };
  const begin = context.begin ?? 0, finish = context.finish ?? begin, left = Math.max(0, begin - 3000), right = Math.min(length, finish + 3000);
  const numbers = [];
  for (let n = Math.floor(left / places.piece); n <= Math.floor(Math.max(left, right - 1) / places.piece); n += 1) numbers.push(n);
  const pieces = await Promise.all(numbers.map((n) => mine(`documents/${context.document}/${n}`)));
  const letters = Array.from(pieces.join("")), from = numbers[0] * places.piece;
  const cut = (a, b) => letters.slice(a - from, b - from).join("");
  const text = [[left, begin, false], [begin, finish, true], [finish, right, false]].filter(([a, b]) => b > a).map(([a, b, hit]) => ({ text: cut(a, b), hit }));
  return { run, document: context.document, name, label, half, tokens, length, begin: left, finish: right, text };
}

export function staticSource() {
  return {
    live: false,
    of: (run) => {
      const mine = async (path) => (await folder(run))(path);
      return {
        sql: false,
        summary: () => mine("summary"),
        findings: () => mine("findings"),
        layers: () => mine("layers"),
        units: (query) => units(mine, query),
        unit: (address) => unit(mine, address),
        document: (context) => document_(mine, run, context),
      };
    },
  };
}
