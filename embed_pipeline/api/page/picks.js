/** Images that were selected, over any number of searches in one project, and copying their ids. */

import { byId, toast } from "./dom.js";
import { images } from "./words.js";

const picked = new Map();
let visible = () => [];
let changed = () => {};

/** Wire the bar. shown(): the images that are to be seen; changes(): called when the selection changed. */
export function preparePicks(shown, changes) {
  visible = shown;
  changed = changes;
  byId("pick-all").addEventListener("click", () => pick(visible(), true));
  byId("pick-none").addEventListener("click", () => forgetPicks());
  byId("copy").addEventListener("click", copyIds);
}

export const isPicked = (imageId) => picked.has(imageId);
export const pickedIds = () => [...picked.keys()];

/** Select images, or no longer. */
export function pick(found, wanted) {
  for (const image of found) {
    if (wanted) picked.set(image.image_id, image);
    else picked.delete(image.image_id);
  }
  changed();
}

/** Select none. */
export function forgetPicks() {
  picked.clear();
  changed();
}

/** Say how many are selected. */
export function showPicks() {
  const shown = visible().length;
  byId("picking").hidden = !shown && !picked.size;
  byId("pick-none").hidden = !picked.size;
  byId("pick-none").textContent = `Clear ${picked.size} selected`;
  byId("pick-all").hidden = !shown || visible().every(({ image_id: id }) => picked.has(id));
  byId("copy").textContent = `Copy ${picked.size || shown} ${(picked.size || shown) === 1 ? "id" : "ids"}`;
}

/** Put words on the clipboard, also where the browser offers it to old means only. */
export async function copy(words, what) {
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    // A page that came over plain http from another machine has no navigator.clipboard.
    if (!copyFromField(words)) return toast("The browser does not let this page copy.");
  }
  return toast(`Copied ${what}.`);
}

function copyFromField(words) {
  const before = document.activeElement;
  const field = document.createElement("textarea");
  field.value = words;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

function copyIds() {
  const ids = picked.size ? pickedIds() : visible().map(({ image_id: id }) => id);
  const json = byId("copy-form").value === "json";
  return copy(json ? JSON.stringify(ids) : ids.join("\n"), `the ids of ${images(ids.length)}`);
}
