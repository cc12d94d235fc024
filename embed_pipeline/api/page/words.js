/** What the page says, in plain words. */

const numbers = new Intl.NumberFormat("en");

export const count = (number) => numbers.format(number);
export const images = (number) => `${count(number)} ${number === 1 ? "image" : "images"}`;
export const percent = (share) => `${Math.round(100 * share)} %`;
export const datasetName = (name) => name || "top folder";

const CONDITIONS = {
  new: "not indexed yet",
  changed: "changed since it was indexed",
  differs: "its last check found differences",
  syncing: "being indexed now",
  paused: "indexing is paused",
  withheld: "removals wait for a confirmation",
};

/** How far a project is, as one phrase. */
export function condition(project) {
  const words = CONDITIONS[project.status];
  const { progress } = project;
  if (project.status !== "syncing" || !progress) return words ?? "up to date";
  const total = progress.total === null ? "" : ` of ${count(progress.total)}`;
  return `${words}: ${progress.step} ${count(progress.done)}${total}`;
}

/** How much of a project can be searched, and why not all. */
export function standing(project) {
  const { status, indexed, failed } = project;
  if (status === "new") return `${images(project.images)}, ${condition(project)}`;
  const reached = status === "in sync";
  if (reached && !failed) return `${images(project.images)}, all can be searched`;
  const unreadable = failed ? ` · ${count(failed)} cannot be read` : "";
  const why = reached ? unreadable : ` · ${condition(project)}${unreadable}`;
  return `${count(indexed)} of ${images(project.images)} can be searched${why}`;
}

/** What the slider's place means. */
export function confidenceHelp(value) {
  if (value === 0) return "Everything is shown, however unlike.";
  if (value === 100) return "Only what no unrelated search would match as well.";
  const chance = count(Math.max(1, 100 - value));
  return `Of 100 unrelated searches, ${chance} would find an image that matches as well.`;
}

/** What a search found. shown, hidden: counts; best: confidence of the best; least: what is asked for. */
export function searchSummary({ shown, hidden, more, best, least }) {
  if (!shown && !hidden) return "Nothing found: there is no image to compare with.";
  if (!shown) return `Nothing here matches. ${nearest(best, least)}`;
  const those = more && !hidden ? `The best ${images(shown)}` : images(shown);
  return hidden ? `${those}; ${count(hidden)} less sure ${hidden === 1 ? "is" : "are"} hidden.` : `${those}.`;
}

/** How far the best image is from what is asked for. */
export const nearest = (best, least) =>
  `The best image is only ${percent(best)} sure, and you ask for ${least} %.`;

/** What a selection found. */
export const selectionSummary = (answer) =>
  `${images(answer.images.length)} chosen from ${count(answer.candidates)}.`;

/** How a choice covers the rest against chance, in one sentence. */
export function coverageWords({ coverage, random }) {
  const mean = saved(coverage.mean_distance, random.mean_distance);
  const largest = saved(coverage.largest_distance, random.largest_distance);
  return (
    `Against a random choice of as many, images are ${compared(mean, "nearer to", "further from")} ` +
    `a chosen one on average, and the largest gap is ${compared(largest, "smaller", "larger")}.`
  );
}

const saved = (chosen, random) => (random ? (random - chosen) / random : 0);

function compared(share, less, more) {
  if (Math.abs(share) < 0.005) return `no ${less}`;
  return `${percent(Math.abs(share))} ${share > 0 ? less : more}`;
}

export const METHODS = {
  farthest: "Each next image is as far as can be from those before: nothing rare is missed.",
  kmeans: "As many clusters as images, and the most central image of each.",
  dbscan: "An image of each dense group in turns; lone images are left out.",
  random: "Drawn by lot, to compare with.",
};
