// Keys that work wherever one is. Pages may listen for more; they are listed here so that `?` can tell them all.

export const KEYS: readonly (readonly [keys: string, does: string])[] = [
  ["/", "search a word, or open a unit by its address"],
  ["1 \u2026 9", "the pages, in the order of their tabs"],
  ["j or \u2192", "the next unit, site or token"],
  ["k or \u2190", "the unit, site or token before"],
  ["\u2190 \u2192 in a figure", "read its values one by one"],
  ["Enter", "open what is read in a figure"],
  ["Esc", "close what is open"],
  ["?", "this list"],
];

// Whether a key is meant for something else: a box that is typed into, a figure that is read, a command of the browser.
export function taken(event: KeyboardEvent): boolean {
  if (event.ctrlKey || event.metaKey || event.altKey) return true;
  return event.target instanceof Element && event.target.closest("input, select, textarea, [role=img][tabindex], summary, dialog[open]") !== null;
}
