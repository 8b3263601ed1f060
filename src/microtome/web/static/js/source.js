// The one interface between page and data. A source has
//   live             whether the atlas may change under the page
//   progress()       {signature, damaged, progress}, where it is live
//   of(run)          what a run has to say ("": the first run), with
//   sql              whether the atlas can be queried beside the page
//   summary()  findings()  layers()
//   units(query)     {total, offset, columns, rows, search}; query: basis layer sort order token match offset limit
//   unit(address)    everything about a unit
//   document(context) a stretch of the context's document
// Each gives what microtome.web.records describes, or throws {what, why, instead}.

import { serverSource } from "./source_server.js";
import { staticSource } from "./source_static.js";

export function openSource() {
  const kind = document.querySelector('meta[name="microtome-source"]').content;
  return kind === "static" ? staticSource() : serverSource();
}
