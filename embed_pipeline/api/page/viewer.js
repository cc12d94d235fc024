/** The larger view of an image, with what is known of it. */

import { tool } from "./cards.js";
import { byId, el, openDialog } from "./dom.js";
import { copy, isPicked, pick } from "./picks.js";
import { cards } from "./results.js";
import { LARGE, release, thumbnail } from "./thumbnails.js";
import { count, datasetName, percent } from "./words.js";

const dialog = byId("viewer");
let project = "";
let current = null;
let refer = () => {};

/** Wire the view; `refers` adds an image to what is looked for. */
export function prepareViewer(refers) {
  refer = (side, id) => {
    current = null; // the focus goes to what is found now, not back to the card
    dialog.close();
    refers(side, id);
  };
  byId("viewer-before").addEventListener("click", () => go(-1));
  byId("viewer-after").addEventListener("click", () => go(1));
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    go(by);
  });
  dialog.addEventListener("close", () => {
    release(dialog);
    current?.querySelector(".open")?.focus();
  });
}

/** Show the image of a card, large. */
export function openViewer(of, card) {
  project = of;
  openDialog(dialog);
  show(card);
}

function go(by) {
  const all = cards();
  const next = all[all.indexOf(current) + by];
  if (next) show(next);
}

function show(card) {
  current = card;
  const { image } = card;
  const all = cards();
  const at = all.indexOf(card);
  byId("viewer-place").textContent = `${count(at + 1)} of ${count(all.length)}`;
  byId("viewer-before").disabled = at === 0;
  byId("viewer-after").disabled = at === all.length - 1;
  byId("viewer-name").textContent = image.name;
  byId("viewer-facts").replaceChildren(...facts(image));
  byId("viewer-tools").replaceChildren(...tools(image));
  showPicture(card);
}

function showPicture({ image, firstElementChild: small }) {
  const place = dialog.querySelector(".viewer-picture");
  release(place);
  const large = thumbnail(project, image.image_id, { side: LARGE, words: image.name });
  // Until it is there, the small picture is better than none.
  const known = small.querySelector("img");
  if (known) large.append(el("img", { src: known.src, alt: "", class: "preview" }));
  place.replaceChildren(large);
}

function facts(image) {
  const rows = [
    ["Dataset", datasetName(image.dataset)],
    ["Id", image.image_id, "id"],
    ["Confidence", image.confidence === undefined ? null : percent(image.confidence)],
    ["Score", image.score?.toFixed(3)],
    ["Chosen as no.", image.order],
    ["Cluster", image.cluster == null ? null : image.cluster + 1],
    ["Distance to those before", image.distance?.toFixed(3)],
    [isLink(image.path) ? "Link" : "Path", image.path || null, "path"],
  ];
  return rows.filter(([, value]) => value != null).flatMap(([name, value, copied]) => [
    el("dt", {}, name),
    el("dd", {}, linked(value), copied ? copyButton(value, copied) : null),
  ]);
}

const isLink = (path) => /^https?:\/\//.test(path);

function linked(value) {
  const link = { href: value, target: "_blank", rel: "noopener noreferrer" };
  return isLink(value) ? el("a", link, value) : el("span", {}, String(value));
}

function copyButton(value, what) {
  const press = () => copy(value, `the ${what}`);
  return el("button", { type: "button", class: "quiet", "aria-label": `Copy the ${what}`, onclick: press }, "Copy");
}

function tools(image) {
  const { image_id: id, name } = image;
  const box = el("input", {
    type: "checkbox",
    checked: isPicked(id),
    onchange: (event) => pick([image], event.target.checked),
  });
  return [
    el("label", { class: "choice" }, box, el("span", {}, "Selected")),
    tool("like", id, name, refer, "More like this"),
    tool("unlike", id, name, refer, "Not like this"),
  ];
}
