/** The caller's key: asked for when the service wants one, forgotten with the tab. */

import { byId, openDialog } from "./dom.js";

const HEADERS = { "key-value": "X-API-Key", "token-value": "X-Supervisely-Token" };
const PLACE = "embed-pipeline-key";

let asking = null;

/** What every request carries. */
export function keyHeaders() {
  return JSON.parse(sessionStorage.getItem(PLACE) ?? "{}");
}

/** Ask the person for a key; however many requests wait, once. Whether one was given. */
export function askForKey(message) {
  asking ??= ask(message).finally(() => (asking = null));
  return asking;
}

function ask(message) {
  const dialog = byId("key");
  const refused = Object.keys(keyHeaders()).length > 0;
  byId("key-message").textContent = refused ? message : "This service answers only who shows one.";
  byId("token-row").hidden = !message.includes(HEADERS["token-value"]);
  openDialog(dialog);
  byId("key-value").focus();
  return new Promise((resolve) => {
    let given = false;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = keep();
      if (given) dialog.close();
    };
    dialog.addEventListener("close", () => resolve(given), { once: true });
  });
}

function keep() {
  const headers = {};
  for (const [id, header] of Object.entries(HEADERS)) {
    const value = byId(id).value.trim();
    byId(id).value = "";
    if (value) headers[header] = value;
  }
  sessionStorage.setItem(PLACE, JSON.stringify(headers));
  return Object.keys(headers).length > 0;
}
