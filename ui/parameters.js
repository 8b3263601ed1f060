// Writes src/api/parameters.ts from openapi.json: the parameters of every address, in order, with their defaults, by which a static
// export names its files; and which addresses an export has no answer for.

import { readFileSync, writeFileSync } from "node:fs";

const { paths } = JSON.parse(readFileSync("openapi.json", "utf8"));
const asked = Object.entries(paths)
  .filter(([path, methods]) => path.startsWith("/api/") && methods.get)
  .map(([path, methods]) => [path.slice("/api/".length), methods.get]);
const rows = asked.map(([path, operation]) => {
  const own = (operation.parameters ?? []).filter((each) => each.in === "query" && each.name !== "run");
  const pairs = own.map((each) => `[${JSON.stringify(each.name)}, ${JSON.stringify(String(each.schema?.default ?? ""))}]`);
  return `  ${JSON.stringify(path)}: [${pairs.join(", ")}],`;
});
const servers = asked.filter(([, operation]) => operation["x-exported"] === false).map(([path]) => JSON.stringify(path));
writeFileSync(
  "src/api/parameters.ts",
  `// Written by parameters.js from openapi.json.\n\n` +
    `export const PARAMETERS: Record<string, readonly (readonly [name: string, usual: string])[]> = {\n${rows.join("\n")}\n};\n\n` +
    `export const SERVER_ONLY: ReadonlySet<string> = new Set([${servers.join(", ")}]);\n`,
);
