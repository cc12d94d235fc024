/** Pictures that are fetched when they come into view, with the caller's key, and let go of afterwards. */

import { askPicture } from "./ask.js";
import { el, icon } from "./dom.js";

const wanted = new WeakMap();
const seen = new IntersectionObserver(look, { rootMargin: "400px" });

/** The longest side of a picture in the grid, pixels. */
export const SMALL = devicePixelRatio > 1 ? 512 : 256;
/** Of one in the larger view. */
export const LARGE = 1024;

/** A box that will hold the picture of an image. words: what it shows, for who cannot see it. */
export function thumbnail(project, imageId, { side = SMALL, words = "" } = {}) {
  const box = el("span", { class: "picture", "data-state": "waiting" });
  wanted.set(box, { project, imageId, side, words });
  seen.observe(box);
  return box;
}

/** Let go of the pictures inside a node that is about to be removed. */
export function release(node) {
  for (const box of node.querySelectorAll(".picture")) {
    const want = wanted.get(box);
    seen.unobserve(box);
    want?.fetching?.abort();
    if (want?.address) URL.revokeObjectURL(want.address);
    wanted.delete(box);
  }
}

function look(entries) {
  for (const { target: box, isIntersecting } of entries) {
    const want = wanted.get(box);
    if (!want) continue;
    if (isIntersecting && !want.fetching) load(box, want);
    if (!isIntersecting && want.fetching) {
      want.fetching.abort();
      want.fetching = null;
    }
  }
}

async function load(box, want) {
  const fetching = new AbortController();
  want.fetching = fetching;
  try {
    const blob = await askPicture(want.project, want.imageId, want.side, fetching.signal);
    if (fetching.signal.aborted) return;
    want.address = URL.createObjectURL(blob);
    box.replaceChildren(el("img", { src: want.address, alt: want.words, decoding: "async" }));
    box.dataset.state = "there";
  } catch (error) {
    if (fetching.signal.aborted) return;
    box.replaceChildren(icon("broken"), el("span", {}, "no picture"));
    box.title = error.message;
    box.dataset.state = "failed";
  }
  seen.unobserve(box);
}
