// The atlas behind `microtome open`: JSON over /api.

import { isProblem, problem, UNANSWERED, type Answer, type Atlas, type Made, type Path, type Problem, type Source } from "./source";

async function ask(path: string, options: RequestInit): Promise<unknown> {
  let response: Response;
  let body: unknown = {};
  try {
    response = await fetch(`api/${path}`, options);
    // an answer that breaks off is none; what says that something is wrong may have no body
    if (response.ok) return await response.json();
    body = await response.json().catch(() => ({}));
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw unanswered();
  }
  throw failed(response.status, body);
}

// The server has ended, or cannot be reached.
export const unanswered = (): Problem =>
  problem(UNANSWERED, "it was stopped, or the connection to it broke", "start `microtome open` again, and then try again");

// What is wrong where the answer is no record.
export function failed(status: number, body: unknown): Problem {
  if (isProblem(body)) return body;
  return problem("The server", `it answered ${status}`, "look at its log and reload");
}

// A query string; what is empty is left to the server's default.
export function queried(parameters: object): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters) as [string, unknown][]) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  return query.size ? `?${query}` : "";
}

export function serverSource(): Atlas {
  const of = (run: string): Source => ({
    kind: "server",
    get: async <P extends Path>(path: P, parameters: object, signal?: AbortSignal) =>
      (await ask(`${path}${queried({ ...parameters, run })}`, { signal: signal ?? null })) as Answer<P>,
    post: async <P extends Path>(path: P, body: unknown, signal?: AbortSignal) =>
      (await ask(`${path}${queried({ run })}`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: signal ?? null,
      })) as Made<P>,
    link: (path, parameters) => `api/${path}${queried({ ...parameters, run })}`,
  });
  return { kind: "server", of, progress: () => of("").get("progress", {}) };
}
