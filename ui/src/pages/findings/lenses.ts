// The lenses, in the order in which they are shown, and what each asks.

import type { Records } from "../../data/source";

export type Finding = Records["Finding"];

export const LENSES: Record<string, string> = {
  geometry: "How do hidden states split into mean, position, context and residual?",
  factors: "Of which sparse directions are hidden states sums?",
  neurons: "What does each feed-forward unit detect, store and promote?",
  facts: "Which units know the facts that were given?",
  labels: "Which units tell the labels that words were given?",
  vocabulary: "What do the parameters say, read in the model’s own vocabulary?",
};

const order = (lens: string): number => {
  const place = Object.keys(LENSES).indexOf(lens);
  return place < 0 ? 99 : place;
};

export const lensesOf = (findings: readonly Finding[]): string[] =>
  [...new Set(findings.map((each) => each.lens))].sort((a, b) => order(a) - order(b) || a.localeCompare(b));

// Whether there is something that it was compared with.
export const controlled = (finding: Finding): boolean => finding.control !== null;

// Findings of a lens by kind, in the order of the first of each; kinds of one finding stand together, without a name. What was compared
// with nothing stands last.
export function byKind(findings: readonly Finding[]): { kind: string; findings: Finding[] }[] {
  const kinds = [...new Set(findings.map((each) => each.kind))];
  const many = kinds.filter((kind) => findings.filter((each) => each.kind === kind).length > 1);
  const groups = many.map((kind) => ({ kind, findings: findings.filter((each) => each.kind === kind) }));
  const single = findings.filter((each) => !many.includes(each.kind));
  if (single.length) groups.push({ kind: "", findings: single });
  const last = (finding: Finding) => Number(!controlled(finding));
  for (const group of groups) group.findings.sort((a, b) => last(a) - last(b));
  return groups.sort((a, b) => last(a.findings[0]!) - last(b.findings[0]!) || a.findings[0]!.rank - b.findings[0]!.rank);
}
