import { vitePreprocess } from "@sveltejs/vite-plugin-svelte";

// Fragments are made node by node: nothing on the page ever parses markup, not even its own.
export default {
  preprocess: vitePreprocess({ script: false }),
  compilerOptions: { runes: true, fragments: "tree" },
};
