/** How well a selection covers all images, beside a random choice. */

import { byId, el } from "./dom.js";
import { coverageWords, percent } from "./words.js";

const ROWS = [
  { name: "Mean distance", key: "mean_distance", good: "less is better" },
  { name: "Largest gap", key: "largest_distance", good: "less is better" },
  { name: "Clusters reached", key: "clusters_touched", good: "more is better", share: true },
];

/** Show it for an answer; nothing for null. */
export function showCoverage(answer) {
  const place = byId("coverage");
  place.hidden = !answer;
  if (!answer) return;
  place.replaceChildren(
    el("p", {}, coverageWords(answer)),
    el("div", { class: "compared" }, ...ROWS.map((row) => compare(row, answer))),
  );
}

function compare({ name, key, good, share }, { coverage, random }) {
  const most = share ? 1 : Math.max(coverage[key], random[key]) || 1;
  const told = (value) => (share ? percent(value) : value.toFixed(2));
  const bar = (words, value) => {
    const length = el("span", { class: "length", "aria-hidden": "true" });
    length.style.setProperty("--share", value / most);
    return el("div", { class: `bar-row ${words}` }, el("span", {}, words), length, el("b", {}, told(value)));
  };
  return el(
    "div",
    { class: "comparison", role: "group", "aria-label": name },
    el("h3", {}, name, el("small", {}, good)),
    bar("chosen", coverage[key]),
    bar("random", random[key]),
  );
}
