// What an address asks and the page leaves out, and why. It is said, for whoever reads on believes that it was done.

export interface Left {
  what: string;
  why: string;
}

export const UNKNOWN = "this run has no such thing";
export const NO_CHOICE = "this page has no such choice";
export const NO_NUMBER = "it is no number";

const CUT = 60;

const short = (text: string): string => ([...text].length > CUT ? `${[...text].slice(0, CUT).join("")}…` : text);

// "Left out, as this run has no such thing: layer 99, order by drop."
export function sentences(left: readonly Left[]): string[] {
  const reasons = [...new Set(left.map(({ why }) => why))];
  return reasons.map((why) => `Left out, as ${why}: ${left.filter((each) => each.why === why).map(({ what }) => short(what)).join(", ")}.`);
}
