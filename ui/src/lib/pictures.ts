// Pictures of documents that are images. They come as JPEG in JSON and are decoded from bytes: no address is made for them, which
// the page's policy would not allow. The last few are kept, for one is often shown more than once.

import type { Source } from "../data/source";

const KEPT = 48;
const kept = new WeakMap<Source, Map<number, Promise<ImageBitmap>>>();

export function pictureOf(source: Source, document: number): Promise<ImageBitmap> {
  const mine = kept.get(source) ?? new Map<number, Promise<ImageBitmap>>();
  kept.set(source, mine);
  let found = mine.get(document);
  if (!found) {
    found = decoded(source, document);
    found.catch(() => mine.delete(document));
    mine.set(document, found);
    if (mine.size > KEPT) for (const oldest of mine.keys()) { mine.delete(oldest); break; }
  }
  return found;
}

async function decoded(source: Source, document: number): Promise<ImageBitmap> {
  const { jpeg } = await source.get("picture", { document });
  const bytes = Uint8Array.from(atob(jpeg), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
}
