// The answer to the last question: an earlier one that is still asked is given up, and what was answered is kept for a while.

import { problemOf, type Problem } from "../../data/source";

const KEPT = 24;

export class Latest<T> {
  value = $state.raw<T | null>(null);
  problem = $state.raw<Problem | null>(null);
  busy = $state(false);
  #key: string | null = null;
  #group = "";
  #ask = new AbortController();
  #kept = new Map<string, T>();

  // What was shown stays until the next is there, unless it is of another group (another text). `wait` milliseconds are waited for a
  // later question, which keeps one who runs through tokens from asking for each.
  ask(group: string, key: string, make: (signal: AbortSignal) => Promise<T>, wait = 0): void {
    const whole = `${key}\n${group}`;
    if (whole === this.#key) return;
    this.#ask.abort();
    this.#ask = new AbortController();
    const { signal } = this.#ask;
    const hurry = this.#key === null || group !== this.#group;
    const known = this.#kept.get(whole);
    if (group !== this.#group) this.value = null;
    [this.#key, this.#group, this.problem, this.busy] = [whole, group, null, !known];
    if (known) this.value = known;
    else setTimeout(() => void this.#make(whole, make, signal), hurry ? 0 : wait);
  }

  async #make(key: string, make: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    try {
      const found = await make(signal);
      if (signal.aborted) return;
      this.#kept.set(key, found);
      for (const oldest of this.#kept.keys()) if (this.#kept.size > KEPT) this.#kept.delete(oldest);
      this.value = found;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Error) console.error(error);
      this.value = null;
      this.problem = problemOf(error);
    }
    this.busy = false;
  }

  // Give up, and show nothing.
  clear(): void {
    this.#ask.abort();
    [this.#key, this.#group, this.value, this.problem, this.busy] = [null, "", null, null, false];
  }
}
