// Several listeners on one element, for what Svelte's attributes are too many of; gives back how to take them away.

export type Listeners = { [E in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[E]) => void };

export function listen(node: HTMLElement, listeners: Listeners): () => void {
  // an element that is taken away while it has the focus blurs in the middle of that, when nothing may be changed yet
  const later = (listener: EventListener): EventListener => (event) => queueMicrotask(() => listener(event));
  const all = (Object.entries(listeners) as [string, EventListener][]).map(
    ([name, listener]): [string, EventListener] => [name, name === "blur" ? later(listener) : listener],
  );
  for (const [name, listener] of all) node.addEventListener(name, listener, { passive: false });
  return () => {
    for (const [name, listener] of all) node.removeEventListener(name, listener);
  };
}
