/** The project chooser. */

import { ask } from "./ask.js";
import { byId, el, icon, openDialog } from "./dom.js";
import { condition, count, images, standing } from "./words.js";

const MANY = 8;
const AGAIN_MS = 15000;

let listed = [];
let choose = () => {};
let chosen = "";

/** Wire the chooser; `chooses` is called with the id of the project that is chosen. */
export function prepareProjects(chooses) {
  choose = chooses;
  byId("project").addEventListener("click", async () => {
    openProjects();
    await refresh();
  });
  byId("project-find").addEventListener("input", list);
  setInterval(() => {
    if (!document.hidden && projectOf(chosen)?.status === "syncing") refresh();
  }, AGAIN_MS);
}

/** Ask for the projects; returns them. */
export async function loadProjects() {
  listed = await ask("v1/projects");
  return listed;
}

/** What is known of a project, if there is one of that id. */
export const projectOf = (id) => listed.find((project) => project.project_id === id);

/** Say which project is searched, and how far it is. */
export function showProject(id) {
  chosen = id;
  const project = projectOf(id);
  byId("project").replaceChildren(
    el("span", {}, project?.name ?? (id || "Choose a project")),
    icon("down"),
  );
  byId("project").setAttribute(
    "aria-label",
    id ? `Project ${project?.name ?? id}; choose another` : "Choose a project",
  );
  const state = byId("project-state");
  state.dataset.status = project?.status ?? "";
  state.textContent = project ? standing(project) : "";
}

/** Show the list. */
export function openProjects() {
  byId("project-find").value = "";
  byId("project-find").hidden = listed.length <= MANY;
  list();
  openDialog(byId("projects"));
  const rows = byId("project-list");
  (rows.querySelector("[aria-current]") ?? rows.querySelector("button"))?.focus();
}

async function refresh() {
  try {
    await loadProjects();
  } catch {
    return; // the list stays as it was; what is asked for next says what is wrong
  }
  showProject(chosen);
  if (byId("projects").open) list();
}

function list() {
  const sought = byId("project-find").value.trim().toLowerCase();
  const matching = listed.filter(({ name, project_id: id }) =>
    `${name} ${id}`.toLowerCase().includes(sought),
  );
  const rows = matching.map((project) => el("li", {}, row(project)));
  const none = listed.length ? "No project of that name." : "There is no project here yet.";
  const at = document.activeElement?.dataset?.project;
  byId("project-list").replaceChildren(...(rows.length ? rows : [el("li", { class: "help" }, none)]));
  if (at) byId("project-list").querySelector(`[data-project="${CSS.escape(at)}"]`)?.focus();
}

function row(project) {
  const id = project.project_id;
  const take = () => {
    byId("projects").close();
    choose(id);
  };
  const facts = `${images(project.images)} · ${count(project.indexed)} indexed`;
  return el(
    "button",
    { type: "button", "data-project": id, "aria-current": id === chosen && "true", onclick: take },
    el("strong", {}, project.name),
    project.name === id ? null : el("span", { class: "help" }, `no. ${id}`),
    el("span", { class: "help" }, facts),
    el("span", { class: "status", "data-status": project.status }, condition(project)),
  );
}
