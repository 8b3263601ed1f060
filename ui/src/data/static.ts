// The atlas as an export. A resource is a file by its path and the values of its parameters; what would be too many files or too
// large ones (the unit browser, units with their contexts, documents) is put together here from shards.

import { PARAMETERS, SERVER_ONLY } from "../api/parameters";
import { findTokens, units } from "./browsing";
import { folder, placeOf, places as readPlaces, total, type Mine, type Places } from "./shards";
import { problem, type Answer, type Atlas, type Parameters, type Path, type Records, type Source } from "./source";

// end, half, rank, site, value, scale, window, position, first, activations
type Thin = [string, string | null, number, string | null, number | null, number | null, number, number, number, string];
// document (by its number in the export), pieces, starts, ends, and of an image which patch each token is
type Window = [number, string[], number[], number[], (number | null)[]?];
// document, name, label, half, tokens, length
type Card = [number, string | null, string | null, string | null, number | null, number | null];
type Context = Records["Context"];

const STRETCH = 3000;
const NO_TOKEN = -128;

type Special = { [P in Path]?: (mine: Mine, parameters: Parameters<P>, run: string) => Promise<Answer<P>> };

const SPECIAL: Special = {
  tokens: (_, { word }) => findTokens(word),
  units: (mine, query) => units(mine, query),
  unit: (mine, { address }) => unit(mine, address),
  document: (mine, asked, run) => document(mine, asked, run),
};

export function staticSource(): Atlas {
  const of = (run: string): Source => ({
    kind: "static",
    get: async <P extends Path>(path: P, parameters: Parameters<P>) => {
      const mine = await folder(run);
      if (SERVER_ONLY.has(path)) throw unanswered();
      const special = SPECIAL[path] as ((mine: Mine, parameters: Parameters<P>, run: string) => Promise<Answer<P>>) | undefined;
      return special ? special(mine, parameters, run) : mine<Answer<P>>(file(path, parameters));
    },
    post: () => Promise.reject(unanswered()),
    link: () => null,
  });
  return { kind: "static", of, progress: () => Promise.resolve(null) };
}

const unanswered = () => problem("This", "it has to be computed, and a static copy has no server", "open the atlas itself with `microtome open`");

const slug = (value: string): string => value.replaceAll(/[^A-Za-z0-9.-]/gu, "-");

// A resource's file: <path>, or <path>/<values of its parameters>.
function file(path: string, parameters: object): string {
  const given = parameters as Record<string, unknown>;
  const order = PARAMETERS[path] ?? [];
  if (!order.length) return path;
  return `${path}/${order.map(([name, usual]) => slug(String(given[name] ?? usual))).join("_")}`;
}

async function unit(mine: Mine, name: string): Promise<Records["UnitPage"]> {
  const places = await readPlaces();
  const place = placeOf(places, name);
  type Written = Omit<Records["UnitPage"], "contexts"> & { contexts: Thin[] };
  const page = (await mine<Written[]>(`units/${Math.floor(place / places.per)}`))[place % places.per];
  if (!page) throw problem(`unit ${name.slice(0, 80)}`, "this copy does not hold it", "copy the whole export folder to the server");
  const cards = page.contexts.length ? await mine<Card[]>("documents") : [];
  const contexts = await Promise.all(page.contexts.map((row) => context(mine, row, cards, places)));
  return { ...page, of: total(places), contexts };
}

// Activations are signed bytes in base64.
const decoded = (text: string): number[] => Array.from(Int8Array.from(atob(text), (letter) => letter.charCodeAt(0)));

async function context(mine: Mine, row: Thin, cards: Card[], places: Places): Promise<Context> {
  const [end, half, rank, site, value, scale, window, position, first, activations] = row;
  const [number, texts, starts, ends, patches] = (await mine<Record<string, Window>>(`windows/${Math.floor(window / places.windows)}`))[window]!;
  const there = decoded(activations)
    .map((code, j) => ({ at: first + j, code }))
    .filter(({ at, code }) => code !== NO_TOKEN && at < texts.length);
  const known = there.filter(({ at }) => starts[at]! >= 0).map(({ at }) => at);
  const card = cards[number];
  return {
    end, half, rank, site, value, scale, window, position,
    centre: Math.max(0, there.findIndex(({ at }) => at === position)),
    pieces: there.map(({ at }) => texts[at]!),
    codes: there.map(({ code }) => code),
    document: card?.[0] ?? null, name: card?.[1] ?? null, label: card?.[2] ?? null,
    begin: known.length ? Math.min(...known.map((at) => starts[at]!)) : null,
    finish: known.length ? Math.max(...known.map((at) => ends[at]!)) : null,
    patches: patches ? there.map(({ at }) => patches[at] ?? null) : null,
  };
}

// Characters are counted as code points, as in the tables.
async function document(mine: Mine, asked: Parameters<"document">, run: string): Promise<Records["Document"]> {
  const places = await readPlaces();
  const cards = await mine<Card[]>("documents");
  const number = cards.findIndex((card) => card[0] === asked.document);
  const [, name, label, half, tokens, length] = cards[number] ?? [0, null, null, null, null, null];
  if (length === null) throw problem("This document", "its text is not in this atlas", "open another context");
  const begin = asked.begin ?? 0;
  const finish = Math.max(begin, asked.finish ?? begin);
  const left = Math.max(0, begin - STRETCH);
  const right = Math.min(length, finish + STRETCH);
  const first = Math.floor(left / places.piece);
  const count = Math.floor(Math.max(left, right - 1) / places.piece) - first + 1;
  const pieces = await Promise.all(Array.from({ length: count }, (_, n) => mine<string>(`documents/${number}/${first + n}`)));
  const letters = Array.from(pieces.join(""));
  const from = first * places.piece;
  const cuts = [[left, begin, false], [begin, finish, true], [finish, right, false]] as const;
  const text = cuts.filter(([a, b]) => b > a).map(([a, b, hit]) => ({ text: letters.slice(a - from, b - from).join(""), hit }));
  return { run, document: asked.document, name, label, half, tokens, length, begin: left, finish: right, text };
}
