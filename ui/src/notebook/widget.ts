// The panel in a cell, as anywidget runs it: a frame with the page, a bar that says what is shown and drags the lower edge, and the
// way of messages between page and kernel. The page is put into the frame as text: it has no address, no origin and no network.

import type { Around, FromPage, ToPage } from "../data/messages";

type ToKernel = { kind: "page" } | { kind: "ask"; id: string; path: string; body: string | null } | { kind: "abort"; id: string };
type FromKernel = { kind: "page" } | { kind: "answer"; id: string; status: number; zipped: boolean };
type Listener = (message: FromKernel, buffers: readonly (DataView | ArrayBuffer)[]) => void;

// What of anywidget's model is used.
interface Model {
  get(name: "address"): string;
  get(name: "height"): number;
  set(name: "address" | "height", value: string | number): void;
  save_changes(): void;
  send(message: ToKernel): void;
  on(name: "msg:custom", listener: Listener): void;
  on(name: string, listener: () => void): void;
  off(name: string, listener: Listener | (() => void)): void;
}

const LEAST = 200;
const MOST = 4000;
const STEP = 40;
const LATE = 2000;
const LOOKED_AT = ["class", "theme", "data-jp-theme-light", "data-vscode-theme-kind"];

// The theme of JupyterLab, VS Code, Colab, or of what marks its body with a class; where none is said, the system's holds.
function around(): Around {
  const { classList, dataset } = document.body;
  if (dataset["jpThemeLight"]) return dataset["jpThemeLight"] === "true" ? "light" : "dark";
  const said = dataset["vscodeThemeKind"] ?? document.documentElement.getAttribute("theme") ?? "";
  if (said) return said.includes("light") ? "light" : "dark";
  return classList.contains("dark") ? "dark" : classList.contains("light") ? "light" : "";
}

function copied(buffer: DataView | ArrayBuffer): ArrayBuffer {
  if (buffer instanceof ArrayBuffer) return buffer.slice(0);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength).slice().buffer as ArrayBuffer;
}

const unzipped = (bytes: ArrayBuffer): Promise<string> =>
  new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();

// The page's text is asked for once, however often the panel is shown.
let text: Promise<string> | null = null;

function page(model: Model): Promise<string> {
  text ??= new Promise((done) => {
    const hear: Listener = (message, [buffer]) => {
      if (message.kind !== "page" || !buffer) return;
      model.off("msg:custom", hear);
      done(unzipped(copied(buffer)));
    };
    model.on("msg:custom", hear);
    model.send({ kind: "page" });
  });
  return text;
}

const made = <T extends HTMLElement>(element: T, style: Partial<CSSStyleDeclaration>, ...inside: HTMLElement[]): T => {
  Object.assign(element.style, style);
  element.append(...inside);
  return element;
};

function parts() {
  const frame = made(document.createElement("iframe"), {
    display: "block", width: "100%", border: "0", background: "light-dark(#faf9f6, #131519)",
  });
  // its scripts run, and its search box is a form; nothing else is allowed but to put an address on the clipboard
  frame.setAttribute("sandbox", "allow-scripts allow-forms");
  frame.setAttribute("allow", "clipboard-write");
  frame.title = "microtome";
  const where = made(document.createElement("code"), {
    flex: "1", minWidth: "0", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap", userSelect: "all", font: "inherit",
    background: "none",
  });
  const state = made(document.createElement("span"), { whiteSpace: "nowrap" });
  state.setAttribute("role", "status");
  const grip = made(document.createElement("div"), {
    cursor: "ns-resize", touchAction: "none", width: "44px", height: "14px", borderRadius: "7px",
    background: "linear-gradient(currentColor, currentColor) center / 24px 2px no-repeat",
  });
  Object.assign(grip, {
    role: "separator", tabIndex: 0, ariaOrientation: "horizontal", ariaValueMin: String(LEAST), ariaValueMax: String(MOST),
    ariaLabel: "Height of the panel", title: "Height: drag, or use the arrow keys",
  });
  const bar = made(document.createElement("div"), {
    display: "flex", alignItems: "center", gap: "12px", padding: "3px 10px", font: "12px/1.5 ui-monospace, Menlo, Consolas, monospace",
    color: "light-dark(#57585c, #a9a8a4)", background: "light-dark(#ffffff, #1a1d22)", borderTop: "1px solid light-dark(#e2dfd7, #2f343b)",
  }, where, state, grip);
  const box = made(document.createElement("div"), {
    border: "1px solid light-dark(#e2dfd7, #2f343b)", borderRadius: "8px", overflow: "hidden", margin: "2px 0",
  }, frame, bar);
  return { box, frame, where, state, grip };
}

// The lower edge follows the pointer, and the arrow keys.
function drag(grip: HTMLElement, model: Model): void {
  const set = (height: number): void => {
    model.set("height", Math.round(Math.min(MOST, Math.max(LEAST, height))));
    model.save_changes();
  };
  let from: { y: number; height: number } | null = null;
  grip.addEventListener("pointerdown", (event) => {
    from = { y: event.clientY, height: model.get("height") };
    grip.setPointerCapture(event.pointerId);
    event.preventDefault();
    grip.focus();
  });
  grip.addEventListener("pointermove", (event) => from && set(from.height + event.clientY - from.y));
  grip.addEventListener("lostpointercapture", () => (from = null));
  grip.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowDown" ? STEP : event.key === "ArrowUp" ? -STEP : 0;
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    set(model.get("height") + step);
  });
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  // several panels, and several browsers, hear the same kernel
  const mine = Math.random().toString(36).slice(2);
  const asked = new Map<string, number>();
  const { box, frame, where, state, grip } = parts();
  let port: MessagePort | null = null;
  let shown = "";
  let ended = false;

  const say = (message: ToPage, passed: Transferable[] = []): void => port?.postMessage(message, passed);

  const dress = (): void => {
    box.style.colorScheme = around() || "light dark";
    say({ kind: "theme", theme: around() });
  };
  const size = (): void => {
    const height = model.get("height");
    frame.style.height = `${height}px`;
    grip.ariaValueNow = String(height);
  };
  const lead = (): void => {
    const address = model.get("address");
    where.textContent = address;
    if (address === shown) return;
    shown = address;
    say({ kind: "go", address });
  };

  // a kernel that runs a cell answers after it
  const wait = (id: string): void => {
    asked.set(id, Date.now());
    setTimeout(() => asked.has(id) && (state.textContent = "waiting for the kernel, which is busy or has stopped"), LATE);
  };
  const answered = (id: string): boolean => {
    const found = asked.delete(id);
    if (!asked.size) state.textContent = "";
    return found;
  };

  const hearKernel: Listener = (message, [buffer]) => {
    if (message.kind !== "answer" || !message.id.startsWith(`${mine}.`)) return;
    if (!answered(message.id) || !buffer) return;
    const body = copied(buffer);
    const { status, zipped } = message;
    say({ kind: "answer", id: Number(message.id.split(".")[1]), status, zipped, body }, [body]);
  };
  const hearPage = ({ data }: MessageEvent<FromPage>): void => {
    if (data.kind === "address") {
      shown = data.address;
      model.set("address", shown);
      model.save_changes();
      lead();
      return;
    }
    const id = `${mine}.${data.id}`;
    if (data.kind === "abort") {
      if (answered(id)) model.send({ kind: "abort", id });
      return;
    }
    wait(id);
    model.send({ kind: "ask", id, path: data.path, body: data.body });
  };
  // said whenever the page is drawn afresh: a notebook that moves a cell makes its frame load again
  const hearFrame = (event: MessageEvent): void => {
    if (event.source !== frame.contentWindow || event.data?.microtome !== "ready") return;
    const channel = new MessageChannel();
    port?.close();
    for (const id of asked.keys()) answered(id);
    port = channel.port1;
    port.onmessage = hearPage;
    shown = model.get("address");
    frame.contentWindow?.postMessage({ microtome: "begin", address: shown, theme: around() }, "*", [channel.port2]);
  };

  const watching = new MutationObserver(dress);
  for (const each of [document.body, document.documentElement]) watching.observe(each, { attributes: true, attributeFilter: LOOKED_AT });
  addEventListener("message", hearFrame);
  model.on("msg:custom", hearKernel);
  model.on("change:height", size);
  model.on("change:address", lead);
  drag(grip, model);
  dress();
  size();
  lead();
  el.append(box);
  wait("page");
  void page(model).then((found) => {
    answered("page");
    if (!ended) frame.srcdoc = found;
  });

  return () => {
    ended = true;
    watching.disconnect();
    removeEventListener("message", hearFrame);
    model.off("msg:custom", hearKernel);
    model.off("change:height", size);
    model.off("change:address", lead);
    port?.close();
    box.remove();
  };
}

export default { render };
