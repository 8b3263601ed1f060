// Text as it is safe to show: what would steer the page or the eye (control characters, direction overrides, ANSI escapes) is
// spelt out; spaces and line ends get a mark. Text is never parsed.

const NAMED: Record<number, string> = {
  0x00ad: "SHY", 0x061c: "ALM", 0x180e: "MVS", 0x200b: "ZWSP", 0x200e: "LRM", 0x200f: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202a: "LRE",
  0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI",
  0xfeff: "BOM",
};

const C0 = "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

// Most text has nothing to spell out, and is shown as it is
const STRANGE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/;

export interface Part {
  text: string;
  mark: boolean;
}

function symbol(code: number): string | null {
  if (code === 0x0a) return "\u21b5";
  if (code === 0x09) return "\u21e5";
  if (code < 0x20) return C0[code] ?? null;
  if (code === 0x7f) return "DEL";
  if (code >= 0x80 && code < 0xa0) return `U+00${code.toString(16).toUpperCase()}`;
  return NAMED[code] ?? null;
}

export const isPlain = (text: string): boolean => !STRANGE.test(text);

// The text in parts; those that are marks stand for a control character.
export function spell(text: string): Part[] {
  if (isPlain(text)) return text ? [{ text, mark: false }] : [];
  const parts: Part[] = [];
  let plain = "";
  const close = () => {
    if (plain) parts.push({ text: plain, mark: false });
    plain = "";
  };
  for (const letter of text) {
    const mark = symbol(letter.codePointAt(0) ?? 0);
    if (mark === null) {
      plain += letter;
      continue;
    }
    close();
    parts.push({ text: mark, mark: true });
  }
  close();
  return parts;
}

// A document keeps its line ends; everything else that is not text is spelt out.
export const prose = (text: string): Part[] =>
  isPlain(text) ? spell(text) : text.split("\n").flatMap((part, n) => (n ? [{ text: "\n", mark: false }, ...spell(part)] : spell(part)));

// A token that stands alone: its leading and trailing spaces, as numbers, and what is between.
export function bared(text: string): { before: number; inner: string; after: number } {
  if (text.trim() === "" && !/[\n\t\r]/.test(text)) return { before: text.length, inner: "", after: 0 };
  return {
    before: /^ */.exec(text)![0].length,
    inner: text.replace(/^ +| +$/g, ""),
    after: / *$/.exec(text)![0].length,
  };
}
