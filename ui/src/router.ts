// The address says what a page shows: #/units?basis=neurons&layer=3&run=main. A page is a name, a rest and parameters;
// where an atlas has several runs, every address names the one it speaks of.

export type Value = string | number | null | undefined;

export interface Address {
  page: string;
  rest: string;
  parameters: URLSearchParams;
}

// What pages were called before; their addresses lead on.
const FORMER: Record<string, string> = { model: "overview", layers: "overview" };

let chosen = "";

export const speakOf = (run: string): void => {
  chosen = run;
};

export function read(): Address {
  const hash = location.hash.startsWith("#/") ? location.hash.slice(2) : "findings";
  const [path = "", query = ""] = hash.split("?");
  const [page = "", ...rest] = path.split("/");
  let tail = rest.join("/");
  try {
    tail = decodeURIComponent(tail);
  } catch {
    // a broken escape is taken as it stands
  }
  tail = tail.replace(/\/+$/, "");
  return { page: FORMER[page] ?? (page || "findings"), rest: page === "unit" ? (unitIn(tail) ?? tail) : tail, parameters: new URLSearchParams(query) };
}

export function href(page: string, rest = "", parameters: Record<string, Value> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "" && name !== "run") query.set(name, String(value));
  }
  const run = parameters["run"] || chosen;
  if (run) query.set("run", String(run));
  const tail = rest ? `/${encodeURIComponent(rest).replaceAll("%2F", "/").replaceAll("%40", "@")}` : "";
  const text = query.toString();
  return `#/${page}${tail}${text ? `?${text}` : ""}`;
}

export const unitHref = (unit: string, parameters?: Record<string, Value>): string => href("unit", unit, parameters);

export const go = (address: string): void => {
  location.hash = address;
};

// Go to this page with some parameters changed.
export function turn(parameters: Record<string, Value>): void {
  const now = read();
  go(href(now.page, now.rest, { ...Object.fromEntries(now.parameters), ...parameters }));
}

// Change parameters of this page without a new entry in the history and without asking for it anew.
export function amend(parameters: Record<string, Value>): void {
  const now = read();
  history.replaceState(history.state, "", href(now.page, now.rest, { ...Object.fromEntries(now.parameters), ...parameters }));
  // no browser tells of it
  dispatchEvent(new Event("amended"));
}

// The same with a new entry in the history, so that Back undoes it.
export function enter(parameters: Record<string, Value>): void {
  const now = read();
  history.pushState(null, "", href(now.page, now.rest, { ...Object.fromEntries(now.parameters), ...parameters }));
  dispatchEvent(new Event("amended"));
}

const SPELLING = String.raw`[a-z_]+(?:@[A-Za-z0-9_-]+)?(?:\.\d+)?\/(?:e\d+\.)?\d+(?:\.[a-z]+\d+)?`;

// The address of a unit, alone or within a sentence.
export const ADDRESS = new RegExp(`^${SPELLING}$`);
export const ADDRESSES = new RegExp(String.raw`(?<![\w@./])${SPELLING}`, "g");

// A unit as it was typed or pasted: in capitals, or with a slash behind. The name of a dictionary has capitals of its own.
export function unitIn(text: string): string | null {
  const [, basis = "", name = "", rest = ""] = /^([A-Za-z_]+)(@[A-Za-z0-9_-]+)?(.*)$/s.exec(text.trim().replace(/\/+$/, "")) ?? [];
  const found = `${basis.toLowerCase()}${name}${rest.toLowerCase()}`;
  return ADDRESS.test(found) ? found : null;
}

const LOOPBACK = /^(localhost|127\.0\.0\.1|\[::1\])$/;

// A page as it was pasted: "#/overview", or the whole address of one of this server.
export function pageIn(text: string): string | null {
  const pasted = text.trim();
  if (pasted.startsWith("#/")) return pasted;
  let url: URL;
  try {
    url = new URL(pasted);
  } catch {
    return null;
  }
  const here = url.host === location.host || (url.port === location.port && [url.hostname, location.hostname].every((each) => LOOPBACK.test(each)));
  return here && url.protocol === location.protocol && url.pathname === location.pathname ? `#/${url.hash.replace(/^#\/?/, "")}` : null;
}
