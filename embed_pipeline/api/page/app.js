/** The search page: what is asked for, and who is told when that changes. */

import { fromAddress, toAddress } from "./address.js";
import { focusComposer, prepareComposer, showComposer } from "./composer.js";
import { forgetDatasets, loadDatasets, prepareDatasets, showDatasets } from "./datasets.js";
import { byId, drawIcons } from "./dom.js";
import { prepareDropping } from "./dropping.js";
import { isKept, keep } from "./files.js";
import { prepareFilters, showConfidence, showDependent, showFilters } from "./filters.js";
import { filter, find, findMore, prepareFinding, rest } from "./finding.js";
import { forgetPicks, preparePicks } from "./picks.js";
import { loadProjects, openProjects, prepareProjects, projectOf, showProject } from "./projects.js";
import { markPicked, prepareResults, showMessage, shown } from "./results.js";
import { openViewer, prepareViewer } from "./viewer.js";

let state = fromAddress(location.search);

/** Something else is asked for. A search follows at once; a selection when its button is pressed. */
function change(patch) {
  state = { ...state, ...patch };
  show();
  if (state.task === "search") run();
}

function run() {
  remember(JSON.stringify(state) === JSON.stringify(history.state) ? "replaceState" : "pushState");
  return find(state);
}

function remember(how) {
  history[how](state, "", toAddress(state));
  const texts = state.texts.filter(Boolean).join(", ");
  document.title = [texts, projectOf(state.project)?.name, "Image search"].filter(Boolean).join(" – ");
}

function show() {
  showProject(state.project);
  showComposer(state);
  showFilters(state);
  showDatasets(state);
}

function slide(confidence) {
  state = { ...state, confidence };
  showConfidence(confidence);
  filter(state);
}

/** Only when the slider rests: browsers refuse addresses that change too often. */
const rested = () => remember("replaceState");

function add(side, references) {
  change({ [side]: [...state[side], ...references] });
}

/** “More like this” always means a search, also from a selection. */
function refer(side, image) {
  const known = state[side].some((each) => each.image === image);
  const other = side === "like" ? "unlike" : "like";
  change({
    task: "search",
    [side]: known ? state[side] : [...state[side], { image }],
    [other]: state[other].filter((each) => each.image !== image),
  });
  byId("summary").focus();
  scrollTo({ top: 0 });
}

async function chooseProject(project) {
  if (project === state.project) return;
  const files = (references) => references.filter(({ file }) => file);
  const { like, unlike } = state;
  state = { ...state, project, like: files(like), unlike: files(unlike), datasets: [], quotas: {} };
  forgetPicks();
  remember("pushState");
  await arrive();
  focusComposer();
}

/** Show a project that is new to the page, or what the address says of it. */
async function arrive() {
  show();
  if (state.project && !(await prepared())) return;
  showDatasets(state);
  find(state);
}

async function prepared() {
  try {
    await loadDatasets(state.project);
  } catch (error) {
    forgetDatasets();
    return failed(error);
  }
  return true;
}

function failed(error) {
  showMessage("error", "That did not work", error.message, { words: "Try again", run: begin });
  return false;
}

async function begin() {
  show();
  if (state.project) arrive(); // the list of projects may take longer than a search
  try {
    await offerProjects(await loadProjects());
  } catch (error) {
    if (!state.project) return failed(error);
  }
  remember("replaceState");
  // Without a pointer that hovers, a keyboard would cover half of the page.
  if (state.project && matchMedia("(hover: hover)").matches) focusComposer();
}

async function offerProjects(projects) {
  if (!state.project && projects.length !== 1) return openProjects();
  if (state.project) return showProject(state.project);
  state = { ...state, project: projects[0].project_id };
  return arrive();
}

drawIcons();
prepareProjects(chooseProject);
prepareComposer({
  typed: (texts) => {
    state = { ...state, ...texts };
    showDependent(state);
  },
  asked: () => run(),
  removed: (side, index) => change({ [side]: state[side].filter((_, at) => at !== index) }),
  added: (side, given) => add(side, given.map((file) => ({ file: keep(file) }))),
});
prepareDropping((side, given) => add(side, given.map((file) => ({ file: keep(file) }))));
prepareFilters((patch) => {
  const other = patch.task && patch.task !== state.task;
  change(patch);
  if (other && state.task === "diverse") {
    remember("pushState");
    rest(state);
  }
}, { slides: slide, rested });
prepareDatasets(change);
preparePicks(shown, () => {
  markPicked();
  showDependent(state);
});
prepareResults({ opens: (card) => openViewer(state.project, card), refers: refer });
prepareViewer(refer);
prepareFinding((confidence) => {
  slide(confidence);
  rested();
}, () => findMore(state));

addEventListener("popstate", async ({ state: before }) => {
  const kept = (references) => references.filter(({ file }) => !file || isKept(file));
  const { project } = state;
  state = before ?? fromAddress(location.search);
  if (state.project !== project) forgetPicks();
  state = { ...state, like: kept(state.like), unlike: kept(state.unlike) };
  await arrive();
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing) return;
  event.preventDefault();
  focusComposer();
});

begin();
