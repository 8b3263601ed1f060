// Written by parameters.js from openapi.json.

export const PARAMETERS: Record<string, readonly (readonly [name: string, usual: string])[]> = {
  "progress": [],
  "model": [],
  "summary": [],
  "findings": [],
  "layers": [],
  "overview": [],
  "geometry": [],
  "geometry_site": [["site", ""]],
  "geometry_heads": [],
  "maps": [],
  "map": [["layout", ""]],
  "column": [["stat", ""], ["site", ""]],
  "label_column": [["kind", ""]],
  "heads": [],
  "head": [["unit", ""]],
  "tokens": [["word", ""]],
  "units": [["basis", ""], ["layer", ""], ["sort", "unit"], ["order", "down"], ["token", ""], ["match", "any"], ["label", ""], ["least", ""], ["most", ""], ["clear", "any"], ["pattern", ""], ["offset", "0"], ["limit", "50"]],
  "unit": [["address", ""]],
  "related": [["unit", ""]],
  "document": [["document", ""], ["begin", "0"], ["finish", "0"]],
};

export const SERVER_ONLY: ReadonlySet<string> = new Set(["related"]);
