/** The datasets of a project as a tree, to look only in some, or to take so many from each. */

import { ask } from "./ask.js";
import { whole } from "./address.js";
import { byId, el } from "./dom.js";
import { count, datasetName } from "./words.js";

const MANY = 12;
const MOST = 100000;

let nodes = []; // {path, depth, images}, a dataset before those that it holds
let built = null; // the nodes that have rows
let shown = {};
let of = "";
let changed = () => {};

/** Wire the tree; `changes` is called with the datasets and quotas that are wanted. */
export function prepareDatasets(changes) {
  changed = changes;
  byId("all-datasets").addEventListener("click", () => changed({ datasets: [] }));
  byId("dataset-find").addEventListener("input", hideOthers);
}

/** Ask for a project's datasets, unless they are here. */
export async function loadDatasets(project) {
  if (of === project) return;
  of = project;
  nodes = [];
  const listed = project ? await ask("v1/datasets", { parameters: { project } }) : [];
  if (of === project) nodes = tree(listed);
}

/** Have them asked for again. */
export const forgetDatasets = () => (of = "");

/** Show the tree, with what is chosen. */
export function showDatasets(state) {
  shown = state;
  byId("datasets-filter").hidden = nodes.length < 2;
  byId("dataset-find").hidden = nodes.length <= MANY;
  byId("all-datasets").hidden = !state.datasets.length;
  if (built !== nodes) {
    built = nodes;
    byId("datasets").replaceChildren(...nodes.map(row));
    hideOthers();
  }
  // In place: a row that is made anew would lose the focus on its way there.
  for (const item of byId("datasets").children) update(item, state);
}

/** Nodes with counts that include those inside; in order. */
export function tree(listed) {
  const counts = new Map();
  for (const { name, images } of listed) {
    const steps = name.split("/");
    for (let depth = 1; depth <= steps.length; depth++) {
      const path = steps.slice(0, depth).join("/");
      counts.set(path, (counts.get(path) ?? 0) + images);
    }
  }
  const order = (path) => path.replaceAll("/", "\0");
  return [...counts]
    .map(([path, images]) => ({ path, images, depth: path.split("/").length - 1 }))
    .sort((a, b) => (order(a.path) < order(b.path) ? -1 : 1));
}

const isInside = (path, outer) => path.startsWith(`${outer}/`);

function row({ path, depth, images }) {
  const name = datasetName(path.split("/").pop());
  const choose = (event) => changed({ datasets: chosen(path, event.target.checked) });
  const box = el("input", { type: "checkbox", onchange: choose });
  const label = el("label", { class: "choice", title: datasetName(path) }, box, el("span", {}, name));
  const number = el("span", { class: "number" }, count(images));
  const item = el("li", { "data-path": path }, label, number, quota(path));
  item.style.setProperty("--depth", depth);
  return item;
}

function quota(path) {
  return el("input", {
    type: "number",
    min: 0,
    max: MOST,
    placeholder: "any",
    "aria-label": `At most so many from ${datasetName(path)}`,
    onchange: (event) => {
      const { [path]: _, ...others } = shown.quotas;
      const most = whole(event.target.value, 0, MOST);
      changed({ quotas: most === null ? others : { ...others, [path]: most } });
    },
  });
}

function update(item, { task, datasets, quotas }) {
  const { path } = item.dataset;
  const [box, most] = item.querySelectorAll("input");
  box.disabled = datasets.some((outer) => isInside(path, outer));
  box.checked = box.disabled || datasets.includes(path);
  most.hidden = task !== "diverse";
  most.value = quotas[path] ?? "";
}

function chosen(path, wanted) {
  const others = shown.datasets.filter((each) => each !== path && !isInside(each, path));
  return wanted ? [...others, path].sort() : others;
}

function hideOthers() {
  const sought = byId("dataset-find").value.trim().toLowerCase();
  for (const item of byId("datasets").children) {
    item.hidden = !item.dataset.path.toLowerCase().includes(sought);
  }
}
