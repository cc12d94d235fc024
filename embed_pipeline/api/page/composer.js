/** What is looked for: lines of text, and images to be like or unlike. */

import { byId, el, icon } from "./dom.js";
import { addressOf, nameOf } from "./files.js";
import { release, thumbnail } from "./thumbnails.js";

const LABELS = { texts: "Text to find", notTexts: "Text to leave out" };
const SIDES = { like: "Like this image", unlike: "Not like this image" };

let shownImages = "";

/**
 * Wire the composer. typed(texts): the lines changed; asked(): search for them; removed(side, index): an image
 * was taken out; added(side, files): files were picked.
 */
export function prepareComposer({ typed, asked, removed, added }) {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    asked();
  });
  byId("texts").addEventListener("input", () => typed(lines()));
  byId("add-text").addEventListener("click", () => addLine("texts", typed));
  byId("add-not-text").addEventListener("click", () => addLine("notTexts", typed));
  byId("texts").addEventListener("click", (event) => {
    const button = event.target.closest(".remove");
    if (!button) return;
    button.closest(".line").remove();
    typed(lines());
    byId("texts").querySelector("input").focus();
    asked();
  });
  for (const side of ["like", "unlike"]) prepareFiles(side, added);
  byId("references").addEventListener("click", (event) => {
    const button = event.target.closest(".remove");
    if (!button) return;
    removed(button.dataset.side, Number(button.dataset.index));
    (byId("references").querySelector(".remove") ?? byId(`add-${button.dataset.side}`)).focus();
  });
}

const ASKS = { search: "What do you want to see?", diverse: "Anything, or only what matches this" };

/** Show what is asked for. Lines that are as they should be are left alone: somebody may be typing. */
export function showComposer(state) {
  const now = lines();
  for (const key of ["texts", "notTexts"]) {
    if (JSON.stringify(now[key]) !== JSON.stringify(state[key])) rebuild(state);
  }
  byId("texts").querySelector("input").placeholder = ASKS[state.task];
  showImages(state);
}

/** Put the cursor into the first line. */
export const focusComposer = () => byId("texts").querySelector("input")?.focus();

function prepareFiles(side, added) {
  const input = byId(`file-${side}`);
  byId(`add-${side}`).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    added(side, [...input.files]);
    input.value = "";
  });
}

function lines() {
  const of = (key) => [...byId("texts").querySelectorAll(`input[data-key=${key}]`)];
  const values = (key) => of(key).map((input) => input.value);
  return { texts: values("texts"), notTexts: values("notTexts") };
}

function rebuild(state) {
  byId("texts").replaceChildren(
    ...state.texts.map((text, index) => line("texts", text, index === 0)),
    ...state.notTexts.map((text) => line("notTexts", text, false)),
  );
}

function line(key, text, first) {
  const words = { texts: "and", notTexts: "not" }[key];
  return el(
    "div",
    { class: first ? "line first" : "line", "data-key": key },
    first ? null : el("span", { class: "word", "aria-hidden": "true" }, words),
    el("input", {
      type: "text",
      value: text,
      "data-key": key,
      "aria-label": LABELS[key],
      placeholder: LABELS[key],
      enterkeyhint: "search",
      "aria-keyshortcuts": first ? "/" : null,
      maxlength: 10000,
    }),
    first
      ? null
      : el("button", { type: "button", class: "remove round", "aria-label": "Remove this text" }, icon("close")),
  );
}

function addLine(key, typed) {
  const added = line(key, "", false);
  const others = byId("texts").querySelectorAll(`.line[data-key=${key}]`);
  const last = others[others.length - 1];
  if (last) last.after(added);
  else byId("texts").append(added);
  added.querySelector("input").focus();
  typed(lines());
}

function showImages({ project, like, unlike }) {
  const now = JSON.stringify([project, like, unlike]);
  if (now === shownImages) return;
  shownImages = now;
  release(byId("references"));
  byId("references").replaceChildren(
    ...like.map((image, index) => chip(project, image, "like", index)),
    ...unlike.map((image, index) => chip(project, image, "unlike", index)),
  );
}

function chip(project, { image, file }, side, index) {
  const name = image ?? nameOf(file);
  const label = `${SIDES[side]}: ${name}`;
  const remove = el(
    "button",
    { type: "button", class: "remove", "data-side": side, "data-index": index, "aria-label": `Remove: ${label}` },
    icon("close"),
  );
  return el(
    "div",
    { class: "chip", "data-side": side, title: label },
    image === undefined ? ownPicture(file, label) : thumbnail(project, image, { words: label }),
    el("span", { class: "side" }, side === "like" ? "like" : "not like"),
    remove,
  );
}

function ownPicture(file, words) {
  const picture = el("img", { src: addressOf(file), alt: words });
  const box = el("span", { class: "picture", "data-state": "there" }, picture);
  picture.addEventListener("error", () => {
    box.dataset.state = "failed"; // a format that browsers do not show; the service may read it
    box.replaceChildren(icon("image"), el("span", {}, nameOf(file)));
  });
  return box;
}
