/** Asking for images, and showing what came: a search page by page, or a selection. */

import { asksAnything } from "./address.js";
import { ask } from "./ask.js";
import { showCoverage } from "./coverage.js";
import { byId, el } from "./dom.js";
import { apartFrom } from "./filters.js";
import { isSorted, searchBody, selectionBody } from "./query.js";
import * as results from "./results.js";
import { nearest, searchSummary, selectionSummary } from "./words.js";

let running = null;
let found = null; // of a search: {hits, next: offset of the next page, or null where there is none}
let slide = () => {};

/** Wire it; `slides` puts the slider somewhere else. */
export function prepareFinding(slides, moreWanted) {
  slide = slides;
  byId("show-hidden").addEventListener("click", () => slide(0));
  byId("more").addEventListener("click", moreWanted);
}

/** Find what is asked for, and show that. */
export async function find(state) {
  found = null;
  clear();
  if (!state.project) return stop();
  if (state.task === "search" && !asksAnything(state)) return welcome(state);
  say(state.task === "search" ? "Searching …" : "Choosing …");
  results.showLoading();
  await attempt(state, state.task === "search" ? search : select);
}

/** Show the next page of what was found. */
export async function findMore(state) {
  byId("more").disabled = true;
  results.hideMessage();
  const before = results.cards().length;
  await attempt(state, search);
  byId("more").disabled = false;
  results.cards()[before]?.querySelector(".open").focus({ preventScroll: true });
}

/** Show no images: what is asked for is not asked yet. */
export function rest(state) {
  found = null;
  clear();
  welcome(state);
}

/** Hide what is less sure than the slider says, and tell how many that are. */
export function filter(state) {
  if (!found) return;
  const least = state.confidence;
  const { shown, hidden } = results.hideUnder(least / 100);
  const sureEnough = found.hits.at(-1)?.confidence >= least / 100;
  const more = found.next !== null && (sureEnough || !isSorted(state));
  const best = Math.max(...found.hits.map((hit) => hit.confidence));
  say(searchSummary({ shown, hidden, more, best, least }));
  byId("more").hidden = !more;
  byId("show-hidden").hidden = !hidden || !shown;
  byId("summary").classList.toggle("unseen", !shown); // the message below says it, too
  results.hideMessage();
  if (!shown && hidden) nothingMatches(best, least, hidden);
  results.markPicked();
}

async function attempt(state, job) {
  running?.abort();
  const current = new AbortController();
  running = current;
  try {
    await job(state, current.signal);
  } catch (error) {
    if (current.signal.aborted) return;
    failed(state, error);
  }
  if (running === current) results.endLoading();
}

async function search(state, signal) {
  const offset = found?.next ?? 0;
  const body = await searchBody(state, offset);
  const { hits, truncated } = await ask("v1/search", { body, signal });
  const known = new Set(found?.hits.map((hit) => hit.image_id));
  const fresh = hits.filter((hit) => !known.has(hit.image_id));
  results.endLoading();
  results.showImages(state.project, fresh, { more: found !== null });
  found = {
    hits: [...(found?.hits ?? []), ...fresh],
    next: hits.length === body.query.limit ? offset + hits.length : null,
  };
  if (found.next !== null && !(await searchBody(state, found.next))) found.next = null;
  noteTruncated(truncated);
  filter(state);
}

async function select(state, signal) {
  const body = await selectionBody(state, apartFrom());
  const answer = await ask("v1/diverse", { body, signal });
  const images = answer.images.map((image, index) => ({ ...image, order: index + 1 }));
  results.endLoading();
  results.showImages(state.project, images);
  results.markPicked();
  say(selectionSummary(answer));
  if (images.length) showCoverage(answer);
  else results.showMessage("empty", "No image to choose from", "Look in more datasets, or ask for less.");
}

function clear() {
  showCoverage(null);
  noteTruncated([]);
  byId("more").hidden = true;
  byId("show-hidden").hidden = true;
}

function stop() {
  running?.abort();
  results.clearResults();
  results.endLoading();
  results.markPicked();
  results.hideMessage();
  say("");
}

function welcome(state) {
  stop();
  const only = state.notTexts.some(Boolean) || state.unlike.length;
  if (state.task === "diverse") {
    results.showMessage(
      "empty",
      "Images that differ from each other",
      "Choose how many and press “Choose images”. A text or an image above narrows down what is chosen from.",
    );
  } else if (only) {
    results.showMessage("empty", "Say what to find, too", "Add a text, or an image to be like.");
  } else {
    results.showMessage(
      "empty",
      "What do you want to see?",
      "Type it in plain words, drop or paste an image to find its like, or combine them.",
    );
  }
}

function nothingMatches(best, least, hidden) {
  results.showMessage(
    "empty",
    "Nothing here matches",
    nearest(best, least),
    { words: `Show the nearest ${hidden} anyway`, run: () => slide(0) },
  );
}

function failed(state, error) {
  if (!found) results.clearResults();
  results.endLoading();
  results.markPicked();
  if (!found) say("");
  const again = { words: "Try again", run: () => (found ? findMore(state) : find(state)) };
  results.showMessage("error", "That did not work", error.message, again);
}

function noteTruncated(texts) {
  const words = "The model reads only the beginning of a long text; the end was left out of: ";
  const short = (text) => `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}”`;
  const note = el("p", { class: "notice" }, words + texts.map(short).join(", "));
  byId("notices").replaceChildren(...(texts.length ? [note] : []));
}

function say(words) {
  byId("summary").classList.remove("unseen");
  byId("summary").textContent = words;
}
