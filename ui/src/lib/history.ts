// Where one was on a page: each entry of the history has a number in its state, and by that its place is found again by Back and
// Forward. A new entry begins at its top. What was unfolded on a page without being in its address is kept the same way.

import { read } from "../router";

// how long a page that is still growing is followed, in milliseconds
const GROWING = 3000;
// how long a window stands still that has come to rest
const REST = 200;

interface Place {
  top: number;
  unfolded: Set<string>;
}

const places = new Map<number, Place>();

// What the state of an entry has, which also a page that is loaded again is given.
function valueOf(name: "entry" | "top"): number | null {
  const value: unknown = (history.state as Record<string, unknown> | null)?.[name];
  return typeof value === "number" ? value : null;
}

let current = 0;
// whether the page of this entry is drawn: before that the window is still where the page before was
let drawn = false;
let stop: (() => void) | null = null;

const placeAt = (entry: number): Place => {
  let found = places.get(entry);
  if (!found) places.set(entry, (found = { top: 0, unfolded: new Set() }));
  return found;
};

function keep(): void {
  if (drawn) placeAt(current).top = scrollY;
}

// A browser writes down only so many states a minute: where one has come to rest.
let resting = 0;
function rest(): void {
  clearTimeout(resting);
  resting = window.setTimeout(() => {
    keep();
    if (drawn && valueOf("entry") === current) history.replaceState({ entry: current, top: placeAt(current).top }, "");
  }, REST);
}

// The entry that the browser is at, which gets a number where it is new.
function turned(): void {
  const known = valueOf("entry");
  const entry = known ?? Math.max(Date.now(), current + 1);
  if (known === null) history.replaceState({ entry }, "");
  else if (!places.has(known)) placeAt(known).top = valueOf("top") ?? 0;
  current = entry;
}

// Called once, before anything is drawn. A page that is loaded again is where it was.
export function begin(): void {
  history.scrollRestoration = "manual";
  turned();
  addEventListener("scroll", rest, { passive: true });
  // a step within a page is drawn as it is made
  addEventListener("amended", () => {
    if (valueOf("entry") === null) {
      keep();
      turned();
    }
  });
}

// Another entry is gone to: from here on the window moves for its sake.
export function leave(): void {
  clearTimeout(resting);
  keep();
  stop?.();
  drawn = false;
  turned();
}

// The page is drawn: go where one was, unless one is there. What is drawn later may make it long enough only then; whoever moves on
// is left alone. Whether another entry was gone to is told.
export function arrive(): boolean {
  if (drawn) return false;
  drawn = true;
  const { top } = placeAt(current);
  scrollTo(0, top);
  if (scrollY < top - 1) follow(top);
  return true;
}

function follow(top: number): void {
  const watch = new ResizeObserver(() => {
    scrollTo(0, top);
    if (scrollY >= top - 1) stop?.();
  });
  const timer = setTimeout(() => stop?.(), GROWING);
  const HANDS = ["wheel", "touchstart", "pointerdown", "keydown"] as const;
  const hands = () => stop?.();
  stop = () => {
    watch.disconnect();
    clearTimeout(timer);
    for (const kind of HANDS) removeEventListener(kind, hands);
    stop = null;
  };
  for (const kind of HANDS) addEventListener(kind, hands, { passive: true });
  watch.observe(document.body);
}

// What is unfolded at this entry, by name.
export const unfolded = (name: string): boolean => placeAt(current).unfolded.has(name);

export const unfold = (name: string): void => {
  placeAt(current).unfolded.add(name);
};

let attended = "";

// Whoever went to another page is at its heading, and reads on from there; what is typed into or chosen from is not left.
export function attend(content: HTMLElement): void {
  const { page, rest } = read();
  const [before, at] = [attended, document.activeElement];
  attended = `${page}/${rest}`;
  if (!before || (before === attended && at !== document.body) || at?.matches("input, select, textarea, dialog, dialog *")) return;
  const heading = content.querySelector("h1");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}
