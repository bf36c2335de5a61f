// What the page tells its reader.

import { byId, make } from "./views/draw.js";

/** To those who listen. */
export function say(text) {
  byId("said").textContent = text;
}

/** What went wrong. Where a key is wanted, ask for one. */
export function complain(error) {
  byId("problem").replaceChildren(make("p", {}, error.message));
  byId("problem").hidden = false;
  if (error.status === 401 && !byId("key-dialog").open) byId("key-dialog").showModal();
}

/** All is well again. */
export function calm() {
  byId("problem").hidden = true;
}
