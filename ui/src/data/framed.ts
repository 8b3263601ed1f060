// The atlas behind a page that stands in a cell of a notebook. What is asked goes to the widget around the frame, which hands it to
// the kernel: no address is fetched, so that it works wherever the kernel is.

import { theme } from "../lib/theme.svelte";
import type { Answered, Begin, FromPage, Ready, ToPage } from "./messages";
import { failed, queried } from "./server";
import type { Answer, Atlas, Made, Path, Source } from "./source";

let port: MessagePort | null = null;
let count = 0;
const waiting = new Map<number, (answered: Answered) => void>();

// Before the page is drawn: get the channel, the address and the theme from the widget.
export async function begin(): Promise<void> {
  const { data, ports } = await new Promise<MessageEvent<Begin>>((done) => {
    const hear = (event: MessageEvent<Begin>): void => {
      if (event.source !== parent || event.data?.microtome !== "begin") return;
      removeEventListener("message", hear);
      done(event);
    };
    addEventListener("message", hear);
    parent.postMessage({ microtome: "ready" } satisfies Ready, "*");
  });
  port = ports[0] ?? null;
  history.replaceState(null, "", `#/${data.address}`);
  theme.follow(data.theme);
  if (port) port.onmessage = (event: MessageEvent<ToPage>) => told(event.data);
  for (const kind of ["hashchange", "amended"]) addEventListener(kind, () => say({ kind: "address", address: location.hash.slice(2) }));
}

const say = (message: FromPage): void => port?.postMessage(message);

function told(message: ToPage): void {
  if (message.kind === "theme") theme.follow(message.theme);
  else if (message.kind === "go") location.hash = `#/${message.address}`;
  else {
    const answer = waiting.get(message.id);
    waiting.delete(message.id);
    answer?.(message);
  }
}

async function ask(path: string, body: string | null, signal?: AbortSignal): Promise<unknown> {
  signal?.throwIfAborted();
  const id = ++count;
  const { status, zipped, body: bytes } = await new Promise<Answered>((done, fail) => {
    waiting.set(id, done);
    signal?.addEventListener("abort", () => {
      if (!waiting.delete(id)) return;
      say({ kind: "abort", id });
      fail(signal.reason);
    }, { once: true });
    say({ kind: "ask", id, path, body });
  });
  const stream = new Blob([bytes]).stream();
  const record: unknown = await new Response(zipped ? stream.pipeThrough(new DecompressionStream("gzip")) : stream).json();
  signal?.throwIfAborted();
  if (status !== 200) throw failed(status, record);
  return record;
}

export function framedSource(): Atlas {
  const of = (run: string): Source => ({
    kind: "server",
    get: async <P extends Path>(path: P, parameters: object, signal?: AbortSignal) =>
      (await ask(`${path}${queried({ ...parameters, run })}`, null, signal)) as Answer<P>,
    post: async <P extends Path>(path: P, body: unknown, signal?: AbortSignal) =>
      (await ask(`${path}${queried({ run })}`, JSON.stringify(body), signal)) as Made<P>,
    link: () => null,
  });
  return { kind: "server", of, progress: () => of("").get("progress", {}) };
}
