// What is asked of the vocabulary: a word's units by basis and by what they do with it.

import type { Answer, Records, Source } from "../../data/source";

export const DOES = { promotes: "Promote it", suppresses: "Suppress it", fires: "Fire on it" } as const;
export type Does = keyof typeof DOES;
export const ALL = Object.keys(DOES) as Does[];
export const SHOWN = 8;

export interface Column {
  card: Records["BasisCard"];
  found: Record<Does, Answer<"units">>;
}

export interface Asked {
  word: string;
  // of the tokens that spell it the one that is meant; all where there is none
  exact: number | null;
  tokens: Records["Suggestions"] | null;
  columns: Column[];
  heads: Answer<"heads">;
}

const ORDER = ["neurons", "heads", "factors"];

export async function ask(source: Source, summary: Records["Summary"], word: string, chosen: string, signal: AbortSignal): Promise<Asked> {
  const rank = (basis: string) => (ORDER.indexOf(basis) + ORDER.length + 1) % (ORDER.length + 1);
  const cards = [...summary.bases].sort((a, b) => rank(a.basis) - rank(b.basis));
  const [heads, tokens] = await Promise.all([source.get("heads", {}, signal), word ? source.get("tokens", { word }, signal) : null]);
  const exact = tokens?.tokens.find((each) => String(each.token) === chosen)?.token ?? null;
  if (!tokens?.tokens.length) return { word, exact, tokens, columns: [], heads };
  const columns = await Promise.all(
    cards.map(async (card): Promise<Column> => {
      const one = (match: Does) => source.get("units", { basis: card.basis, token: word, exact, match, sort: "match", limit: SHOWN }, signal);
      const [promotes, suppresses, fires] = await Promise.all([one("promotes"), one("suppresses"), one("fires")]);
      return { card, found: { promotes, suppresses, fires } };
    }),
  );
  return { word, exact, tokens, columns, heads };
}

export interface HeadPair {
  unit: string;
  label: string;
  end: string;
  pair: Records["Pair"];
}

const TOGETHER = 6;

// The pairs of all heads that have one of some tokens, furthest from chance first; `progress` is told how many heads were read.
export async function pairsWith(
  source: Source, heads: readonly Records["HeadCard"][], tokens: ReadonlySet<number>, signal: AbortSignal, progress: (done: number) => void,
): Promise<HeadPair[]> {
  const found: HeadPair[] = [];
  let next = 0;
  let done = 0;
  async function read(): Promise<void> {
    for (let card = heads[next++]; card && !signal.aborted; card = heads[next++]) {
      const page = await source.get("head", { unit: card.unit }, signal);
      for (const circuit of page.circuits) {
        for (const end of circuit.ends) {
          for (const pair of end.pairs) if (tokens.has(pair.token) || tokens.has(pair.other)) found.push({ unit: card.unit, label: circuit.label, end: end.end, pair });
        }
      }
      progress((done += 1));
    }
  }
  await Promise.all(Array.from({ length: TOGETHER }, read));
  return found.sort((a, b) => Math.abs(b.pair.z ?? 0) - Math.abs(a.pair.z ?? 0));
}
