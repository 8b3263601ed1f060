// The address holds the whole state of a view: #/units?basis=neurons&layer=3&run=main. A view is a name, a rest and parameters;
// where an atlas has several runs, every address names the one it speaks of.

let chosen = "";

export const speakOf = (run) => { chosen = run; };

export function read() {
  const hash = location.hash.startsWith("#/") ? location.hash.slice(2) : "findings";
  const [path, query = ""] = hash.split("?");
  const [view, ...rest] = path.split("/");
  let tail = rest.join("/");
  try { tail = decodeURIComponent(tail); } catch { /* a broken escape is taken as it stands */ }
  return { view: view || "findings", rest: tail, params: new URLSearchParams(query) };
}

export function href(view, rest = "", params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "" && name !== "run") query.set(name, value);
  }
  if (params.run || chosen) query.set("run", params.run || chosen);
  const tail = rest ? `/${encodeURIComponent(rest).replaceAll("%2F", "/").replaceAll("%40", "@")}` : "";
  const text = query.toString();
  return `#/${view}${tail}${text ? `?${text}` : ""}`;
}

export const unitHref = (unit, params) => href("unit", unit, params);

export const go = (address) => { location.hash = address; };

// Change parameters of this view without a new entry in the history and without drawing it anew.
export function amend(params) {
  const now = read();
  const all = Object.fromEntries(now.params);
  history.replaceState(null, "", href(now.view, now.rest, { ...all, ...params }));
}

export const ADDRESS = /^[a-z_]+(@[A-Za-z0-9_-]+)?(\.\d+)?\/(e\d+\.)?\d+(\.[a-z]+\d+)?$/;
