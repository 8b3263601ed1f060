// The one interface between page and data. A source answers a resource, which is a path with parameters, by its record, typed by
// what the server says of itself (src/api/schema.d.ts); or it throws a Problem. Nothing else of the page fetches anything.

import type { components, paths } from "../api/schema";
import { framedSource } from "./framed";
import { serverSource } from "./server";
import { staticSource } from "./static";

export type Records = components["schemas"];
export type Problem = Records["Problem"];

type Named<K> = K extends `/api/${infer P}` ? P : never;
type Operation<P extends string, M extends string> = `/api/${P}` extends keyof paths
  ? paths[`/api/${P}`] extends Record<M, infer O> ? O : never
  : never;
type Json<O> = O extends { responses: { 200: { content: { "application/json": infer A } } } } ? A : never;
type Asked<O> = O extends { parameters: { query?: infer Q } } ? Omit<NonNullable<Q>, "run"> : Record<never, never>;
type Sent<O> = O extends { requestBody: { content: { "application/json": infer B } } } ? B : never;

// A path that can be asked for, its parameters (but the run, which is bound once), and what is answered.
export type Path = Named<keyof paths>;
export type Parameters<P extends Path> = Asked<Operation<P, "get">>;
export type Answer<P extends Path> = Json<Operation<P, "get">>;
export type Body<P extends Path> = Sent<Operation<P, "post">>;
export type Made<P extends Path> = Json<Operation<P, "post">>;

// What one run has to say.
export interface Source {
  // an export answers what was written out; a server also what has to be computed (SQL, text that is typed)
  readonly kind: "server" | "static";
  get<P extends Path>(path: P, parameters: Parameters<P>, signal?: AbortSignal): Promise<Answer<P>>;
  post<P extends Path>(path: P, body: Body<P>, signal?: AbortSignal): Promise<Made<P>>;
  // where the answer can be read by itself, if it can
  link<P extends Path>(path: P, parameters: Parameters<P>): string | null;
}

export interface Atlas {
  readonly kind: "server" | "static";
  // the run of that name; "" is the first
  of(run: string): Source;
  // how the files are and how far a build is; nothing where they cannot change
  progress(): Promise<Records["Progressed"] | null>;
}

export function openAtlas(): Atlas {
  const meta = document.querySelector<HTMLMetaElement>('meta[name="microtome-source"]');
  if (meta?.content === "framed") return framedSource();
  return meta?.content === "static" ? staticSource() : serverSource();
}

// What is said where no server is; the page offers to ask again.
export const UNANSWERED = "The server does not answer";

export const problem = (what: string, why: string, instead: string): Problem => ({ what, why, instead });

export const isProblem = (error: unknown): error is Problem =>
  typeof error === "object" && error !== null && "what" in error && "why" in error && "instead" in error;

// Any error as a problem that can be shown.
export function problemOf(error: unknown): Problem {
  if (isProblem(error)) return error;
  return problem("Something went wrong", error instanceof Error ? error.message : String(error), "");
}
