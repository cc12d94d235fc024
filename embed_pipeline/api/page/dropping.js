/** Images that are dropped or pasted anywhere on the page. */

import { byId, toast } from "./dom.js";

/** Wire it; added(side, files) takes them. */
export function prepareDropping(added) {
  const target = byId("drop");
  let depth = 0;
  const over = (event) => event.dataTransfer?.types.includes("Files");
  const end = () => {
    depth = 0;
    target.hidden = true;
  };
  addEventListener("dragenter", (event) => {
    if (!over(event)) return;
    depth += 1;
    target.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) end();
  });
  addEventListener("dragover", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    for (const zone of target.children) zone.classList.toggle("aim", zone.contains(event.target));
  });
  addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    end();
    const side = event.target.closest?.("[data-side]")?.dataset.side ?? "like";
    take(side, [...event.dataTransfer.files], added);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take("like", files, added);
  });
}

function take(side, files, added) {
  // A browser knows no type of formats that are foreign to it; the service says what it cannot read.
  const pictures = files.filter((file) => !file.type || file.type.startsWith("image/"));
  if (pictures.length < files.length) toast("What is no image was left out.");
  if (pictures.length) added(side, pictures);
}
