/** Building elements without markup in strings. */

/** An element; attributes that are false or missing are left out, functions named on… are listeners. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** The element of that id. */
export const byId = (id) => document.getElementById(id);

const SHAPES = {
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  before: "M15 5l-7 7 7 7",
  after: "M9 5l7 7-7 7",
  down: "M6 9.5l6 6 6-6",
  image: "M4 5h16v14H4zM4 16l4.5-4.5L13 16l3-3 4 4M15.5 9.5h.01",
  broken: "M4 5h16v14H4zM9 10l6 5M15 10l-6 5",
};

/** A decorative icon. */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const path = document.createElementNS(namespace, "path");
  path.setAttribute("d", SHAPES[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

/** Put icons into the buttons of the page that name one. */
export function drawIcons() {
  for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
}

/** Open a dialog whose close buttons close it, and so does a click beside it. */
export function openDialog(dialog) {
  if (!dialog.dataset.ready) {
    dialog.dataset.ready = "yes";
    for (const button of dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => dialog.close());
    }
    dialog.addEventListener("mousedown", (event) => isBeside(event, dialog) && dialog.close());
  }
  if (!dialog.open) dialog.showModal();
}

function isBeside({ target, clientX: x, clientY: y }, dialog) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return target === dialog && (x < left || x > right || y < top || y > bottom);
}

let toastTimer;

/** Tell something for a few seconds. */
export function toast(words) {
  const place = byId("toast");
  (document.querySelector("dialog[open]") ?? document.body).append(place); // nothing shows above a dialog
  clearTimeout(toastTimer);
  place.textContent = words;
  toastTimer = setTimeout(() => (place.textContent = ""), 4000);
}
