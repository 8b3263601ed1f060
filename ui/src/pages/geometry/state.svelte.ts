// What is chosen on the page: it is in the address, and changes there without asking for the page anew.

import { amend, enter, go } from "../../router";

export class Chosen {
  #read = $state.raw(new URLSearchParams());
  #changed = $state.raw<Record<string, string>>({});

  // An address brings its own choices.
  begin(parameters: URLSearchParams): void {
    this.#read = parameters;
    this.#changed = {};
  }

  get(name: string, usual = ""): string {
    return (this.#changed[name] ?? this.#read.get(name)) || usual;
  }

  // One of a list; the first where it is none of them.
  of<T extends string>(name: string, choices: readonly T[], usual?: T): T {
    const asked = this.get(name);
    return choices.find((each) => each === asked) ?? usual ?? choices[0]!;
  }

  set(changes: Record<string, string>): void {
    this.#changed = { ...this.#changed, ...changes };
    amend(changes);
  }

  // The same as a step that Back undoes.
  enter(changes: Record<string, string>): void {
    this.#changed = { ...this.#changed, ...changes };
    enter(changes);
  }
}

// Go elsewhere from a figure that is read: it is left before it is taken away.
export function leave(address: string): void {
  if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
  go(address);
}
