// What the build adds to the bundle: licences of what is in it, and built.json, which says of which sources it was made.

import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { transformWithEsbuild, type Plugin } from "vite";

const ROOT = fileURLToPath(new URL(".", import.meta.url));

// Everything that decides what the bundle is; tests/unit/web/test_bundle.py has the same list.
const SOURCES = [
  ".npmrc", "bundle.ts", "index.html", "openapi.json", "package-lock.json", "package.json", "parameters.js", "public", "src",
  "svelte.config.js", "tsconfig.json", "vite.config.ts",
];

function files(path: string): string[] {
  if (!existsSync(path)) return [];
  return statSync(path).isDirectory() ? readdirSync(path).flatMap((name) => files(join(path, name))) : [path];
}

const digest = (content: Buffer | string): string => createHash("sha256").update(content).digest("hex");
const named = (path: string, root: string): string => relative(root, path).split(sep).join("/");

// sha256 over lines "<sha256 of the file>  <its path>", sorted by path.
function sources(): string {
  const paths = SOURCES.flatMap((name) => files(join(ROOT, name)));
  const lines = paths.map((path) => [named(path, ROOT), digest(readFileSync(path))] as const).sort(([a], [b]) => (a < b ? -1 : 1));
  return digest(lines.map(([path, each]) => `${each}  ${path}\n`).join(""));
}

// What the page never uses: addresses of explanations in messages of the framework, an attribute for pages of several origins, and
// the one method of a library that parses markup.
export function quiet(): Plugin {
  return {
    name: "quiet",
    transform: (code, id) => (id.includes("/node_modules/d3-selection/") ? { code: code.replaceAll(".innerHTML", ".textContent"), map: null } : null),
    transformIndexHtml: { order: "post", handler: (page) => page.replaceAll(" crossorigin", "") },
    renderChunk: (code) => ({ code: code.replaceAll("https://svelte.dev/e/", "svelte: "), map: null }),
  };
}

// licences.txt: name, version and licence of every package that has code in the bundle.
export function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const packages = new Set<string>();
      for (const chunk of Object.values(bundle)) {
        if (chunk.type !== "chunk") continue;
        for (const id of chunk.moduleIds) {
          // a leading NUL marks what a plugin made of a file
          const found = /^[^\0]*\/node_modules\/(@[^/]+\/[^/]+|[^/@][^/]*)\//.exec(id.replace("\0", "").split("?")[0] ?? "");
          if (found) packages.add(found[0]);
        }
      }
      const texts = [...packages].map((folder) => {
        const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { name: string; version: string; license?: string };
        const file = readdirSync(folder).find((name) => /^licen[cs]e(\.|$)/i.test(name));
        const text = file ? readFileSync(join(folder, file), "utf8").trim() : "";
        return `${about.name} ${about.version} (${about.license ?? "licence as below"})\n\n${text}\n`;
      });
      const source = `Packages whose code is in this page.\n\n${texts.sort().join(`\n${"-".repeat(80)}\n\n`)}`;
      this.emitFile({ type: "asset", fileName: "licences.txt", source });
    },
  };
}

const hash = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

// For notebooks: page.html, which is the page with its script and style in it and may use nothing else, and widget.js, which frames it.
export function framed(): Plugin {
  return {
    name: "framed",
    enforce: "post",
    generateBundle: {
      order: "post",
      async handler(_, bundle) {
        const [script = "", style = ""] = ["framed.js", "style.css"].map((name) => {
          const found = bundle[name];
          delete bundle[name];
          return found?.type === "chunk" ? found.code : String(found?.source ?? "");
        });
        if (!script || !style || /<!--|<\/style/i.test(script + style)) this.error("script and style cannot stand in a page");
        const code = script.replaceAll(/<(?=\/script)/gi, "\\x3c");
        const policy = `default-src 'none'; script-src ${hash(code)}; style-src ${hash(style)}; form-action 'none'`;
        const source = readFileSync(join(ROOT, "index.html"), "utf8")
          .replace(/(?<=Content-Security-Policy" content=")[^"]*/, policy)
          .replace('content="server"', 'content="framed"')
          .replace(/<link rel="icon".*\n/, `<base href="about:srcdoc">\n<style>STYLE</style>\n`)
          .replace(/<script type="module".*<\/script>/, `<script type="module">SCRIPT</script>`)
          .replace("STYLE", () => style)
          .replace("SCRIPT", () => code);
        this.emitFile({ type: "asset", fileName: "page.html", source });
        const widget = readFileSync(join(ROOT, "src/notebook/widget.ts"), "utf8");
        this.emitFile({ type: "asset", fileName: "widget.js", source: (await transformWithEsbuild(widget, "widget.ts", { minify: true })).code });
      },
    },
  };
}

// The names of the pages, for who has to know what an address can begin with.
export const pages = (): string[] => [...readFileSync(join(ROOT, "src/pages.ts"), "utf8").matchAll(/\{ name: "(\w+)"/g)].map(([, name]) => name!);

// built.json: {sources, files}; the server hands out exactly these files.
export function written(more: object = {}): Plugin {
  let out = "";
  return {
    name: "written",
    configResolved: (config) => {
      out = config.build.outDir;
    },
    writeBundle: () => {
      const folder = join(ROOT, out);
      const found = files(folder).map((path) => named(path, folder)).filter((name) => name !== "built.json").sort();
      writeFileSync(join(folder, "built.json"), `${JSON.stringify({ sources: sources(), files: found, ...more }, null, 2)}\n`);
    },
  };
}
