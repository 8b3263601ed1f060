// The pages, in the order of their tabs. A page is a Svelte file with a function `load`, which asks for what it shows; it is drawn
// when that is there. A new page is a row here. It is fetched when it is first opened.

import type { Component } from "svelte";
import { unanswered } from "./data/server";
import { problem, type Records, type Source } from "./data/source";

// What a page is asked for: the address, and whom to ask.
export interface Asking {
  source: Source;
  summary: Records["Summary"];
  rest: string;
  parameters: URLSearchParams;
  signal: AbortSignal;
}

export interface PageProps<D> {
  asking: Asking;
  data: D;
}

export interface PageModule<D> {
  default: Component<PageProps<D>>;
  load: (asking: Asking) => Promise<D>;
  // what the tab of the browser says, where that is not the page's title
  title?: (data: D) => string;
}

export interface Drawn {
  component: Component<PageProps<unknown>>;
  data: unknown;
  title: string | undefined;
}

export interface Page {
  name: string;
  title: string;
  // the tab that is lit while it is open; its own where none is named
  under?: string;
  open: (asking: Asking) => Promise<Drawn>;
}

// The code of a page is fetched when it is first opened; every browser has words of its own for code that is not there.
function unfetched({ kind }: Source, error: unknown): Records["Problem"] | null {
  if (!(error instanceof TypeError) || !/dynamically imported module|module script/i.test(error.message)) return null;
  if (kind === "server") return unanswered();
  return problem("The code of this page", "it cannot be fetched", "look whether the web server still has the whole export folder, and reload");
}

const opening = <D>(fetched: () => Promise<PageModule<D>>) => async (asking: Asking): Promise<Drawn> => {
  try {
    const found = await fetched();
    const data = await found.load(asking);
    return { component: found.default as unknown as Component<PageProps<unknown>>, data, title: found.title?.(data) };
  } catch (error) {
    throw unfetched(asking.source, error) ?? error;
  }
};

export const PAGES: readonly Page[] = [
  { name: "findings", title: "Findings", open: opening(() => import("./pages/Findings.svelte")) },
  { name: "overview", title: "Overview", open: opening(() => import("./pages/Overview.svelte")) },
  { name: "geometry", title: "Geometry", open: opening(() => import("./pages/Geometry.svelte")) },
  { name: "units", title: "Units", open: opening(() => import("./pages/Units.svelte")) },
  { name: "vocabulary", title: "Vocabulary", open: opening(() => import("./pages/Vocabulary.svelte")) },
  { name: "text", title: "Text", open: opening(() => import("./pages/Text.svelte")) },
  { name: "compare", title: "Compare", open: opening(() => import("./pages/Compare.svelte")) },
  { name: "unit", title: "Unit", under: "units", open: opening(() => import("./pages/Unit.svelte")) },
];

export const TABS = PAGES.filter((page) => !page.under);
