// A text as the model read it, and what is told of its tokens.

import type { Records } from "../../data/source";
import { known, number, percent, type Numeric } from "../../lib/format";
import { bared, spell } from "../../lib/spell";
import { floats, shorts, wholes } from "../units/packed";

type Page = Records["TextPage"];
type Unit = Records["ActiveUnit"];

export interface Word {
  text: string;
  id: number;
  chance: number;
}

// What the logit lens says at a site and a token.
export interface Reading {
  words: Word[];
  entropy: number;
  // of the token that is to be predicted
  target: number;
  rank: number;
}

export interface Lens {
  sites: readonly string[];
  at: (site: number, token: number) => Reading;
}

// A unit at a token; `edit` is how an edit names it.
export interface Active {
  unit: Unit;
  edit: string;
  value: number;
  size: number;
}

export const KINDS = ["near", "neurons", "heads", "factors"] as const;
export type Kind = (typeof KINDS)[number];

export interface Read {
  text: string;
  page: Page;
  tokens: number;
  lens: Lens | null;
  active: (kind: Kind, token: number) => Active[];
  unit: (address: string) => Unit | undefined;
}

export function decoded(page: Page, text: string): Read {
  const kinds = { near: page.near, neurons: page.neurons, heads: page.heads_active, factors: page.factors };
  const columns = Object.fromEntries(KINDS.map((kind) => [kind, activesOf(kinds[kind])])) as Record<Kind, (token: number) => Active[]>;
  const units = new Map(KINDS.flatMap((kind) => kinds[kind].units.map((unit) => [unit.unit, unit] as const)));
  return {
    text, page, tokens: page.ids.length, lens: page.lens && lensOf(page, page.lens),
    active: (kind, token) => columns[kind](token), unit: (address) => units.get(address),
  };
}

function lensOf(page: Page, lens: Records["TextLens"]): Lens {
  const [top, chance, entropy, target, rank] = [wholes(lens.top), floats(lens.probability), floats(lens.entropy), floats(lens.target), wholes(lens.rank)];
  const { sites, per } = lens;
  const tokens = page.ids.length;
  const at = (site: number, token: number): Reading => {
    const place = site * tokens + token;
    const words = Array.from({ length: per }, (_, k) => {
      const row = top[place * per + k]!;
      return { text: page.words[row] ?? "", id: page.word_ids[row] ?? -1, chance: chance[place * per + k]! };
    });
    return { words, entropy: entropy[place]!, target: target[place]!, rank: rank[place]! };
  };
  return { sites, at };
}

function activesOf(found: Records["ActiveUnits"]): (token: number) => Active[] {
  const [index, values, sizes] = [wholes(found.index), floats(found.values), floats(found.sizes)];
  return (token) =>
    Array.from({ length: found.per }, (_, k) => token * found.per + k)
      .filter((place) => index[place]! >= 0)
      .map((place) => {
        const unit = found.units[index[place]!]!;
        return { unit, edit: unit.site ? `${unit.unit}@${unit.site}` : unit.unit, value: values[place]!, size: sizes[place]! };
      });
}

// The token that the model is to predict where it stands at `token`: the next one, or of an encoder its own.
export function targetOf({ page, tokens }: Read, token: number): { text: string; id: number } | null {
  const place = page.predicts === "next" ? token + 1 : token;
  if (page.predicts === "nothing" || place >= tokens) return null;
  return { text: page.pieces[place] ?? "", id: page.ids[place] ?? -1 };
}

// Minus the log-probability of each token by the last layer; of the first nothing is said where each is predicted from those before.
export function surprises(read: Read): Float32Array {
  const { lens, page, tokens } = read;
  const step = page.predicts === "next" ? 1 : 0;
  return Float32Array.from({ length: tokens }, (_, n) => (lens && n >= step ? -Math.log(lens.at(lens.sites.length - 1, n - step).target) : NaN));
}

export const entropies = ({ lens, tokens }: Read): Float32Array =>
  Float32Array.from({ length: tokens }, (_, n) => (lens ? lens.at(lens.sites.length - 1, n).entropy : NaN));

// "in" for what enters the first layer, else the layer behind which the state is.
export const short = (site: string): string => (site.startsWith("resid_pre") ? "in" : (site.split(".")[1] ?? site));

// A token as plain text: control characters spelt out, spaces at its ends as dots.
export function shown(text: string): string {
  const { before, inner, after } = bared(text);
  const dots = (n: number) => "\u00b7".repeat(Math.min(n, 8));
  const whole = dots(before) + spell(inner).map((part) => part.text).join("") + dots(after);
  return whole || "\u2026";
}

// A probability: as a percentage where that says something.
export const chance = (value: Numeric): string => (known(value) && value > 0 && value < 0.001 ? number(value, 2) : percent(value));

export interface Shares {
  layer: number;
  heads: number;
  tokens: number;
  // of a head's query, what it gives to a key
  at: (head: number, query: number, key: number) => number;
}

export function sharesOf(found: Records["TextAttention"]): Shares {
  const all = shorts(found.shares);
  const { layer, heads, tokens } = found;
  return { layer, heads, tokens, at: (head, query, key) => all[(head * tokens + query) * tokens + key]! / 65535 };
}

// A token's prediction, clean beside edited: all words that are among the first of either.
export interface Both {
  text: string;
  clean: number;
  edited: number;
}

export interface Compared {
  kl: Float32Array;
  control: Float32Array;
  // of how many draws of other units the control is the mean
  draws: number;
  loss: { clean: Float32Array; edited: Float32Array };
  at: (token: number) => Both[];
  clean: Records["WrittenText"] | null;
  edited: Records["WrittenText"] | null;
}

export function comparedOf(found: Records["Edited"]): Compared {
  const { per, words } = found;
  const sides = [
    [wholes(found.clean), floats(found.clean_by_clean), floats(found.clean_by_edited)],
    [wholes(found.edited), floats(found.edited_by_clean), floats(found.edited_by_edited)],
  ] as const;
  const at = (token: number): Both[] => {
    const all = new Map<number, Both>();
    for (const [rows, clean, edited] of sides) {
      for (let place = token * per; place < (token + 1) * per; place += 1) {
        all.set(rows[place]!, { text: words[rows[place]!] ?? "", clean: clean[place]!, edited: edited[place]! });
      }
    }
    return [...all.values()].sort((a, b) => Math.max(b.clean, b.edited) - Math.max(a.clean, a.edited));
  };
  return {
    kl: floats(found.kl), control: floats(found.control), draws: found.draws,
    loss: { clean: floats(found.loss_clean), edited: floats(found.loss_edited) },
    at, clean: found.written_clean, edited: found.written_edited,
  };
}

// The mean of what is a number.
export function mean(values: Float32Array): number {
  const there = values.filter(Number.isFinite);
  return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : NaN;
}
