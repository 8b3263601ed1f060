import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";
import { licences, quiet, written } from "./bundle";

// Names of files have no hashes: the server gives each an ETag, and the list of files stays the same from build to build.
export default defineConfig({
  base: "./",
  plugins: [svelte(), quiet(), licences(), written()],
  build: {
    outDir: "../src/microtome/web/static",
    emptyOutDir: true,
    target: "es2022",
    sourcemap: false,
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
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
});
