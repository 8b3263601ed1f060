// What units are called, as it is shown. A level is a word of its own ("mid" is not "middle"), so its depth stands with it.

const LEVELS: Record<string, string> = {
  low: "low is up to a sixth of the depth",
  middle: "middle is between a sixth and two thirds of the depth, and mid is behind it",
  mid: "mid is from two thirds of the depth on, and middle is before it",
  high: "high is from two thirds of the depth on, and needs much context",
};

// What the level of a label means; nothing where it is none.
export const levelMeans = (text: string): string => LEVELS[/^\w+(?=: strongest at )/.exec(text)?.[0] ?? ""] ?? "";

export function spoken(kind: string, text: string): string {
  const [, level, depth] = kind === "level" ? (/^(\w+): strongest at (\d+) ?% of the depth$/.exec(text) ?? []) : [];
  return level && depth ? `${level} (strongest at ${depth}\u202f% of the depth)` : text;
}
