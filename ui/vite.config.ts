import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type BuildOptions, type UserConfig } from "vite";
import { framed, licences, pages, quiet, written } from "./bundle";

const BUILD: BuildOptions = {
  emptyOutDir: true,
  target: "es2022",
  sourcemap: false,
  cssCodeSplit: false,
  assetsInlineLimit: 0,
  modulePreload: { polyfill: false },
  reportCompressedSize: false,
};

// Names of files have no hashes: the server gives each an ETag, and the list of files stays the same from build to build.
const PAGE: UserConfig = {
  base: "./",
  plugins: [svelte(), quiet(), licences(), written()],
  build: {
    ...BUILD,
    outDir: "../src/microtome/web/static",
    rollupOptions: {
      output: {
        entryFileNames: "app.js",
        chunkFileNames: "js/[name].js",
        assetFileNames: "[name][extname]",
        // what several pages share is in few files; a page is in its own, and the figures in one that is fetched with the first
        manualChunks: (id) => {
          if (/\/node_modules\/(svelte|esm-env|clsx)\//.test(id) || id.includes("vite/preload-helper")) return "svelte";
          if (id.includes("/node_modules/") || /\/src\/lib\/(Figure|ByLayer|figures)\b/.test(id)) return "figures";
          return /\/src\/(data|router|keyboard|api|lib\/(?!Scatter|Heatmap|scatter|colours))/.test(id) ? "parts" : undefined;
        },
      },
    },
  },
};

// The same page as one text, for the cell of a notebook.
const NOTEBOOK: UserConfig = {
  base: "./",
  publicDir: false,
  plugins: [svelte(), quiet(), licences(), framed(), written({ pages: pages() })],
  build: {
    ...BUILD,
    outDir: "../src/microtome/notebook/static",
    modulePreload: false,
    rollupOptions: {
      input: "src/framed.ts",
      output: { entryFileNames: "framed.js", assetFileNames: "[name][extname]", inlineDynamicImports: true },
    },
  },
};

export default defineConfig(({ mode }) => (mode === "notebook" ? NOTEBOOK : PAGE));
