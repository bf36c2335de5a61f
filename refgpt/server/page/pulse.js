// How surprising the latest tokens were: a bar for each, in its colour, as high as the token has bits.

import { probability, stepOf } from "./tokens.js";
import { byId, make } from "./views/draw.js";

const MOST_BARS = 64;
const MOST_BITS = 12; // what a bar can show

const root = byId("pulse");

/** Add a token, if it has a probability. */
export function addBeat(token) {
  const p = probability(token);
  if (p === null) return;
  const bar = make("i", { class: `h${stepOf(token)}` });
  bar.style.setProperty("--bits", Math.min(1, -Math.log2(p) / MOST_BITS));
  root.append(bar);
  if (root.childElementCount > MOST_BARS) root.firstElementChild.remove();
}

/** Draw the last of some tokens. */
export function drawPulse(tokens) {
  root.replaceChildren();
  tokens.slice(-MOST_BARS).forEach(addBeat);
}
