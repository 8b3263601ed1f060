// What is chosen on the page (all of it is in the address), and what is asked of the model for it.

import { untrack } from "svelte";
import { isProblem, problem, type Answer, type Body, type Source } from "../../data/source";
import { count } from "../../lib/format";
import { NO_CHOICE, type Left } from "../../lib/left";
import type { Asking } from "../../pages";
import { read as address } from "../../router";
import { Chosen } from "../geometry/state.svelte";
import { parsed, written, type Edit } from "./edits";
import { Latest } from "./latest.svelte";
import { comparedOf, decoded, sharesOf, targetOf, type Compared, type Read, type Shares } from "./read";

export type Model = Answer<"model">;
export type Parts = Awaited<ReturnType<typeof partsOf>>;
export type Writing = NonNullable<Body<"text/edited">["write"]>;

export const VIEWS = ["lens", "units", "parts", "attention", "edits"] as const;
export type View = (typeof VIEWS)[number];

// milliseconds in which one who runs through tokens goes on to the next
const PAUSE = 220;
export const WRITING: Writing = { tokens: 20, temperature: 0, top_p: 1, seed: 0 };

const partsOf = (source: Source, body: Body<"text/parts">, signal: AbortSignal) => source.post("text/parts", body, signal);

const whole = (text: string): number | null => (/^\d{1,9}$/.test(text) ? Number(text) : null);

export class Live {
  readonly chosen = new Chosen();
  readonly reading = new Latest<Read>();
  readonly attention = new Latest<Shares>();
  readonly parts = new Latest<Parts>();
  readonly compared = new Latest<Compared>();
  readonly wrote = new Latest<Compared>();
  readonly model: Model;
  // bases whose units have pages
  readonly bases: readonly string[];
  // whether the model has answered: before the first time it is opened
  opened = $state(false);
  #source: Source;

  constructor(asking: Asking, model: Model) {
    this.#source = asking.source;
    this.model = model;
    this.bases = asking.summary.bases.map((each) => each.basis);
    this.opened = model.state === "open";
  }

  readonly text = $derived(this.chosen.get("text"));
  readonly read = $derived(this.reading.value);
  readonly view = $derived(this.chosen.of("view", VIEWS, this.read && !this.read.lens ? "units" : "lens"));
  readonly #parsed = $derived.by(() => parsed(this.chosen.get("edits"), this.model.edits));
  readonly edits = $derived(this.#parsed.edits);
  readonly place = $derived(Math.min(whole(this.chosen.get("at")) ?? Infinity, (this.read?.tokens ?? 1) - 1));
  // the strongest head of the last token: what is looked at where nothing was chosen
  readonly #strongest = $derived.by(() => {
    const unit = this.read?.active("heads", this.read.tokens - 1)[0]?.unit.unit ?? "";
    const [, layer = "0", head = "0"] = /^heads\.(\d+)\/(\d+)$/.exec(unit) ?? [];
    return { layer: Number(layer), head: Number(head) };
  });
  readonly layer = $derived(Math.min(whole(this.chosen.get("layer")) ?? this.#strongest.layer, (this.read?.page.layers ?? 1) - 1));
  readonly head = $derived(
    Math.min(whole(this.chosen.get("head")) ?? (this.layer === this.#strongest.layer ? this.#strongest.head : 0), (this.read?.page.heads ?? 1) - 1),
  );
  // the layer behind which the state is that is taken apart; none: the last
  readonly behind = $derived.by(() => {
    const asked = whole(this.chosen.get("behind"));
    return asked === null || asked >= (this.read?.page.layers ?? 1) - 1 ? null : asked;
  });
  readonly writing = $derived.by((): Writing | null => {
    const [tokens = NaN, temperature = NaN, top_p = NaN, seed = NaN] = this.chosen.get("write").split("*").map((each) => Number(each || NaN));
    const right = tokens >= 1 && tokens <= this.model.written && temperature >= 0 && temperature <= 5 && top_p > 0 && top_p <= 1 && seed >= 0;
    return right && Number.isInteger(tokens) && Number.isInteger(seed) ? { tokens, temperature, top_p, seed } : null;
  });

  // What the address asks that is not understood.
  readonly left = $derived.by((): Left[] => {
    const [view, write] = [this.chosen.get("view"), this.chosen.get("write")];
    return [
      ...this.#parsed.left,
      ...(view && !VIEWS.some((each) => each === view) ? [{ what: `view ${view}`, why: NO_CHOICE }] : []),
      ...(write && !this.writing ? [{ what: `write ${write}`, why: "that is no way to write on" }] : []),
    ];
  });

  // Why a text is not sent.
  readonly refused = $derived.by(() => {
    const length = [...this.text].length;
    if (length <= this.model.characters) return null;
    return problem("The text", `it has ${count(length)} characters, and at most ${count(this.model.characters)} are read here at once`, "shorten it");
  });

  begin(asking: Asking): void {
    this.#source = asking.source;
    // as the address is now: something may have been chosen since it was read
    this.chosen.begin(address().parameters);
  }

  // Ask for what is shown and is not there; called again whenever something is chosen.
  follow(): void {
    const { text, read, view, place, layer, behind, edits, writing, refused } = this;
    const logit = whole(this.chosen.get("logit"));
    const source = this.#source;
    untrack(() => {
      if (!text.trim() || refused) return this.end();
      this.reading.ask(text, "", async (signal) => this.#noted(async () => decoded(await source.post("text", { text }, signal), text)));
      if (read?.text !== text) return;
      if (view === "attention") this.attention.ask(text, `${layer}`, async (signal) => sharesOf(await source.post("text/attention", { text, layer }, signal)), PAUSE);
      if (view === "parts") {
        const inside = layer <= (behind ?? Infinity) ? layer : null;
        const body = { text, place, layer: behind, inside, token: logit };
        this.parts.ask(text, JSON.stringify(body), (signal) => partsOf(source, body, signal), PAUSE);
      }
      if (read.page.predicts === "nothing") return;
      const asked = written(edits);
      if (edits.length) this.compared.ask(text, asked, async (signal) => comparedOf(await source.post("text/edited", { text, edits }, signal)), PAUSE);
      else this.compared.clear();
      const key = `${asked} ${JSON.stringify(writing)}`;
      if (writing) this.wrote.ask(text, key, async (signal) => comparedOf(await source.post("text/edited", { text, edits, write: writing }, signal)));
      else this.wrote.clear();
    });
  }

  // The model is open when it has answered; also when it says that this text is too long for it.
  async #noted<T>(make: () => Promise<T>): Promise<T> {
    try {
      const found = await make();
      this.opened = true;
      return found;
    } catch (error) {
      if (isProblem(error) && error.what === "the text") this.opened = true;
      throw error;
    }
  }

  end(): void {
    for (const each of [this.reading, this.attention, this.parts, this.compared, this.wrote]) each.clear();
  }

  again(which: { clear: () => void }): void {
    which.clear();
    this.follow();
  }

  type(text: string): void {
    this.chosen.enter({ text, at: "", logit: "", write: "" });
  }

  choose(place: number): void {
    const { tokens = 1 } = this.read ?? {};
    this.chosen.set({ at: String(Math.max(0, Math.min(tokens - 1, place))), logit: "" });
  }

  edit(edits: readonly Edit[]): void {
    this.chosen.enter({ edits: written(edits), write: "" });
  }

  // Do this to a unit at all tokens; what was done to it gives way, and the same once more takes it back.
  change(one: Edit): void {
    const same = this.edits.some((each) => written([each]) === written([one]));
    const others = this.edits.filter((each) => each.unit !== one.unit);
    this.edit(same ? others : [...others, one]);
  }

  // The token whose prediction is explained: what is to be predicted, in words.
  readonly target = $derived(this.read ? targetOf(this.read, this.place) : null);
}
