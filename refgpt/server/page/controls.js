// The page's buttons and keys, and what each of them does.

import { fitComposer } from "./composer.js";
import { byId } from "./views/draw.js";

const BUTTONS = ["stop", "retry", "undo", "redo", "compare", "new", "save"];

/**
 * Listen to buttons and keys.
 *
 * @param {object} does  functions, by the names of buttons; also goOn, open (takes a file), useKey (takes a text) and
 *     text (the text to copy)
 * @param {() => boolean} isRunning  whether a text is being written
 */
export function listen(does, isRunning) {
  for (const name of BUTTONS) byId(name).addEventListener("click", () => does[name]());
  byId("composer-form").addEventListener("submit", (event) => {
    event.preventDefault();
    does.goOn();
  });
  byId("composer").addEventListener("input", fitComposer);
  addEventListener("resize", fitComposer);
  byId("copy").addEventListener("click", () => copy(does.text()));
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async ({ target }) => {
    if (target.files.length) await does.open(target.files[0]);
    target.value = "";
  });
  byId("colours").addEventListener("change", ({ target }) => {
    byId("sheet").classList.toggle("plain-text", !target.checked);
  });
  byId("key-dialog").addEventListener("close", () => {
    does.useKey(byId("key").value.trim());
    byId("key").value = "";
  });
  document.addEventListener("keydown", (event) => shortcut(event, does, isRunning()));
}

async function copy(text) {
  await navigator.clipboard.writeText(text);
  byId("copy-name").textContent = "Copied";
  setTimeout(() => (byId("copy-name").textContent = "Copy"), 1500);
}

function shortcut(event, does, running) {
  const held = event.ctrlKey || event.metaKey;
  const typing = event.target.matches("textarea, input");
  if (event.key === "Escape" && running && byId("alternatives").hidden) does.stop();
  else if (event.key === "Enter" && held) does.goOn();
  else if (event.key.toLowerCase() === "z" && held && !typing && !running) does[event.shiftKey ? "redo" : "undo"]();
  else return;
  event.preventDefault();
}
