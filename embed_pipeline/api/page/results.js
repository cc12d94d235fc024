/** The grid of found images, and what is said about it. */

import { cardOf } from "./cards.js";
import { byId, el } from "./dom.js";
import { isPicked, pick, showPicks } from "./picks.js";
import { release } from "./thumbnails.js";

const grid = byId("results");
let actions = {};
let last = null; // the card that was selected last: Shift selects from there

/** Wire the grid. opens(card), refers(side, imageId): what its buttons do. */
export function prepareResults({ opens, refers }) {
  actions = { open: opens, refer: refers, pick: pickRange };
  grid.addEventListener("keydown", step);
}

/** Show images, after those that are there if `more`. */
export function showImages(project, images, { more = false } = {}) {
  if (!more) clearResults();
  grid.append(...images.map((image) => cardOf(project, image, actions)));
}

/** Show none. */
export function clearResults() {
  release(grid);
  grid.replaceChildren();
  last = null;
}

/** The cards that are not hidden, in order. */
export const cards = () => [...grid.querySelectorAll(".card:not([hidden])")];

/** The images of those. */
export const shown = () => cards().map((card) => card.image);

/** Hide what is less sure than this (0..1); returns how many are shown, and how many hidden. */
export function hideUnder(least) {
  let hidden = 0;
  for (const card of grid.children) {
    card.hidden = card.image?.confidence < least;
    hidden += card.hidden;
  }
  return { shown: grid.children.length - hidden, hidden };
}

/** Mark which are selected. */
export function markPicked() {
  for (const card of grid.children) {
    const wanted = isPicked(card.image?.image_id);
    card.classList.toggle("picked", wanted);
    const box = card.querySelector("input");
    if (box) box.checked = wanted;
  }
  showPicks();
}

/** Empty frames where images will be; what is there already only fades. */
export function showLoading() {
  byId("results").setAttribute("aria-busy", "true");
  byId("message").hidden = true;
  if (grid.children.length) return;
  const frame = () => el("li", { class: "card frame", "aria-hidden": "true" }, el("span", { class: "picture" }));
  grid.replaceChildren(...Array.from({ length: 12 }, frame));
}

/** Nothing is on its way any more. */
export function endLoading() {
  grid.removeAttribute("aria-busy");
  for (const frame of grid.querySelectorAll(".frame")) frame.remove();
}

/** Words in place of images. kind: `error` or `empty`; action: {words, run} of a button below. */
export function showMessage(kind, title, words = "", action = null) {
  const place = byId("message");
  place.className = `message ${kind}`;
  place.setAttribute("role", kind === "error" ? "alert" : "note");
  place.hidden = false;
  place.replaceChildren(
    el("h2", {}, title),
    words ? el("p", {}, words) : "",
    action ? el("button", { type: "button", class: "primary", onclick: action.run }, action.words) : "",
  );
}

/** No words in place of images. */
export const hideMessage = () => (byId("message").hidden = true);

function pickRange(image, wanted, event) {
  const all = cards();
  const at = all.findIndex((card) => card.image === image);
  const from = event.shiftKey && last ? all.indexOf(last) : -1;
  const range = from < 0 ? [all[at]] : all.slice(Math.min(from, at), Math.max(from, at) + 1);
  last = all[at];
  pick(range.map((card) => card.image), wanted);
}

/** Arrow keys go from picture to picture. */
function step(event) {
  const all = cards();
  const at = all.indexOf(event.target.closest(".card"));
  if (at < 0 || !event.target.matches(".open")) return;
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const next = all[at + (by ?? 0)];
  if (!by || !next) return;
  event.preventDefault();
  next.querySelector(".open").focus();
}
