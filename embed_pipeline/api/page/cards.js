/** An image in the grid. */

import { el, icon } from "./dom.js";
import { isPicked } from "./picks.js";
import { thumbnail } from "./thumbnails.js";
import { datasetName, percent } from "./words.js";

/**
 * The card of a found image. actions: open(card), pick(image, wanted, event), refer(side, imageId).
 * The image is kept as `card.image`.
 */
export function cardOf(project, image, { open, pick, refer }) {
  const { image_id: id, name, dataset } = image;
  const box = el("input", {
    type: "checkbox",
    checked: isPicked(id),
    "aria-label": `Select ${name}`,
    onclick: (event) => pick(image, event.target.checked, event),
  });
  const card = el(
    "li",
    { class: "card" },
    el(
      "button",
      { type: "button", class: "open", "aria-label": described(image), onclick: () => open(card) },
      thumbnail(project, id),
    ),
    el("label", { class: "pick", title: "Select" }, box),
    el("div", { class: "tools" }, tool("like", id, name, refer), tool("unlike", id, name, refer)),
    el("p", { class: "name", title: name }, name),
    el(
      "p",
      { class: "facts" },
      el("span", { class: "dataset", title: datasetName(dataset) }, datasetName(dataset)),
      fact(image),
    ),
  );
  card.image = image;
  return card;
}

/** A button that adds the image to what is looked for. */
export function tool(side, id, name, refer, words = "") {
  const says = side === "like" ? "More like this" : "Not like this";
  const label = words ? null : `${says}: ${name}`;
  return el(
    "button",
    { type: "button", title: says, "aria-label": label, "data-side": side, onclick: () => refer(side, id) },
    icon(side === "like" ? "plus" : "minus"),
    words || null,
  );
}

function described({ name, confidence, order }) {
  const sure = confidence === undefined ? `choice ${order}` : `${percent(confidence)} sure`;
  return `Open ${name}, ${sure}`;
}

function fact({ confidence, order, cluster }) {
  if (confidence === undefined) {
    const group = cluster == null ? "" : ` · cluster ${cluster + 1}`;
    return el("span", { class: "sure" }, `no. ${order}${group}`);
  }
  const bar = el("span", { class: "meter", "aria-hidden": "true" });
  bar.style.setProperty("--share", confidence);
  return el("span", { class: "sure", title: `Confidence ${percent(confidence)}` }, bar, percent(confidence));
}
