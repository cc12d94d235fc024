/** From what is asked for to what the service takes. */

import { asksAnything, asksSeveral, said } from "./address.js";
import { dataOf } from "./files.js";

export const PAGE = 48;
const POOL = 1000; // the service orders the best of so many where one answer depends on others
const MOST_HITS = 10000;

/** The body of a search for the page of hits from `offset` on; null where there is no further one. */
export async function searchBody(state, offset) {
  const pooled = mode(state) === "all" || state.diversity > 0;
  const limit = Math.min(PAGE, (pooled ? POOL : MOST_HITS) - offset);
  if (limit <= 0) return null;
  const query = { ...(await asked(state)), ...scope(state), limit, offset };
  if (state.diversity) query.diversity = state.diversity / 100;
  return { project: state.project, query };
}

/** The body of a diverse selection. chosen: ids of images that the new ones must differ from, too. */
export async function selectionBody(state, chosen) {
  const selection = { limit: state.count, method: state.method, ...scope(state), chosen };
  if (Object.keys(state.quotas).length) selection.quotas = state.quotas;
  if (asksAnything(state)) {
    selection.query = { ...(await asked(state)), ...scope(state), limit: state.among };
  }
  return { project: state.project, selection };
}

/** Whether hits come from the surest to the least sure. */
export const isSorted = (state) => mode(state) !== "all" && !state.diversity;

const mode = (state) => (asksSeveral(state) ? state.mode : "weighted");

function scope(state) {
  return state.datasets.length ? { datasets: state.datasets } : {};
}

async function asked(state) {
  return {
    texts: said(state.texts),
    not_texts: said(state.notTexts),
    like: await Promise.all(state.like.map(part)),
    unlike: await Promise.all(state.unlike.map(part)),
    mode: mode(state),
  };
}

async function part({ image, file }) {
  return image === undefined ? { data: await dataOf(file) } : { image };
}
