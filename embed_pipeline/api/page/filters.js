/** The controls beside the grid. */

import { asksAnything, asksSeveral, whole } from "./address.js";
import { byId } from "./dom.js";
import { pickedIds } from "./picks.js";
import { METHODS, confidenceHelp, images } from "./words.js";

const TEXTS = { search: "Search", diverse: "Choose images" };
const RADIOS = ["task", "mode"];
const NUMBERS = { count: [1, 1000], among: [1, 1000] };

/** Wire the controls. changes(patch): what is asked for is another; slides(value), rested(): the slider. */
export function prepareFilters(changes, { slides, rested }) {
  for (const name of RADIOS) {
    for (const radio of document.getElementsByName(name)) {
      radio.addEventListener("change", () => changes({ [name]: radio.value }));
    }
  }
  byId("confidence").addEventListener("input", (event) => slides(Number(event.target.value)));
  byId("confidence").addEventListener("change", rested);
  byId("diversity").addEventListener("input", (event) => showDiversity(Number(event.target.value)));
  byId("diversity").addEventListener("change", (event) =>
    changes({ diversity: Number(event.target.value) }),
  );
  byId("method").addEventListener("change", (event) => changes({ method: event.target.value }));
  for (const [id, [least, most]] of Object.entries(NUMBERS)) {
    byId(id).addEventListener("change", (event) => {
      const value = whole(event.target.value, least, most);
      changes(value === null ? {} : { [id]: value });
    });
  }
  const button = byId("filters-button");
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
  });
}

/** Show what is chosen, and the controls of the task at hand. */
export function showFilters(state) {
  for (const name of RADIOS) {
    for (const radio of document.getElementsByName(name)) radio.checked = radio.value === state[name];
  }
  for (const node of document.querySelectorAll(".below [data-task]")) {
    node.hidden = node.dataset.task !== state.task;
  }
  for (const id of Object.keys(NUMBERS)) byId(id).value = state[id];
  byId("method").value = state.method;
  byId("method-help").textContent = METHODS[state.method];
  byId("diversity").value = state.diversity;
  byId("go").textContent = TEXTS[state.task];
  showDiversity(state.diversity);
  showConfidence(state.confidence);
  showDependent(state);
}

/** Show the controls that only make sense with something else. */
export function showDependent(state) {
  const diverse = state.task === "diverse";
  byId("among-filter").hidden = !diverse || !asksAnything(state);
  document.getElementsByName("mode")[0].closest("fieldset").hidden = !asksSeveral(state);
  const chosen = pickedIds().length;
  byId("apart-filter").hidden = !diverse || !chosen;
  byId("apart-label").textContent = `Apart from the ${images(chosen)} selected, too`;
}

/** Ids that a selection must differ from. */
export const apartFrom = () =>
  byId("apart-filter").hidden || !byId("apart").checked ? [] : pickedIds();

/** Show where the slider is. */
export function showConfidence(value) {
  byId("confidence").value = value;
  byId("confidence").setAttribute("aria-valuetext", `at least ${value} %`);
  byId("confidence-value").textContent = `${value} %`;
  byId("confidence-help").textContent = confidenceHelp(value);
}

function showDiversity(value) {
  byId("diversity-value").textContent = value ? `${value} %` : "none";
  byId("diversity").setAttribute("aria-valuetext", value ? `${value} %` : "none");
}
