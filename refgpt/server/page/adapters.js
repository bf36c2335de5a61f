// The adapter that writes, which the reader chooses. Where the server has none, there is nothing to choose.

import { byId, make } from "./views/draw.js";

const select = byId("adapter");
let masks = new Map([[null, "causal"]]); // by the adapters' names; null: the model without one

/** The name of the chosen adapter; null for the model without one. */
export const chosen = () => select.value || null;

/** The mask of the model with an adapter. */
export const maskWith = (adapter) => masks.get(adapter) ?? masks.get(null);

export const isServed = (adapter) => masks.has(adapter);

/** What is said about an adapter; nothing where the server has none. */
export function told(adapter) {
  if (masks.size === 1) return "";
  return adapter === null ? "without an adapter" : `with the adapter ${adapter}`;
}

/** List the adapters of a server: see `model` of api.js. The choice stays if that adapter is still served. */
export function list({ mask, adapters }) {
  const before = chosen();
  masks = new Map([[null, mask], ...adapters]);
  const options = [...adapters.keys()].map((name) => make("option", { value: name }, name));
  select.replaceChildren(make("option", { value: "" }, "none"), ...options);
  byId("adapter-field").hidden = adapters.size === 0;
  choose(before);
}

/** Choose an adapter, or none if it is not served. */
export function choose(name) {
  select.value = isServed(name) && name !== null ? name : "";
}

/** Call a function whenever the reader chooses another adapter. */
export function listen(changed) {
  select.addEventListener("change", changed);
}
