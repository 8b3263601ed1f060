// The atlas behind `microtome open`: JSON over /api.

async function ask(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  let response;
  try {
    response = await fetch(`api/${path}${query.size ? `?${query}` : ""}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { what: "The server does not answer", why: "it was stopped, or the connection to it broke", instead: "start `microtome open` again and reload" };
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  if (body.what) throw body;
  if (response.status === 422) throw { what: "This address", why: "a part of it has a value that is not possible", instead: "start from the unit browser" };
  throw { what: "The server", why: `it answered ${response.status}`, instead: "look at its log and reload" };
}

export function serverSource() {
  return {
    live: true,
    progress: () => ask("progress"),
    of: (run) => ({
      sql: true,
      summary: () => ask("summary", { run }),
      findings: () => ask("findings", { run }),
      layers: () => ask("layers", { run }),
      units: (query, signal) => ask("units", { ...query, run }, signal),
      unit: (address, signal) => ask("unit", { address, run }, signal),
      document: ({ document, begin, finish }) => ask("document", { document, begin, finish, run }),
    }),
  };
}
