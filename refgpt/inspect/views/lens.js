// The logit lens: what the model would answer if it ended before the first block, or after any other.

import { chooser } from "./chooser.js";
import { grid, heading, line, make, position, shade, shares, token } from "./draw.js";

/**
 * Draw the logit lens of a pass.
 *
 * @param {HTMLElement} root  for the table, in a box that scrolls; emptied first
 * @param {HTMLElement} panel  for what is said about the chosen cell
 * @param {object} pass  of `readPass`
 */
export function drawLens(root, panel, pass) {
  const { nTokens, nLayer, ids } = pass;
  const names = ["embed", ...Array.from({ length: nLayer }, (_, i) => `block ${i}`)];
  const rows = names.map((name, layer) => [name, ids.map((_, t) => [token(pass, pass.lensAt(layer, t)[0][0])])]);
  const { whole, items } = grid("lens", "Logit lens", [["from"], ...ids.map((id) => [token(pass, id)])], rows);
  const placeOf = (i) => [Math.floor(i / nTokens), i % nTokens];
  items.forEach((item, i) => {
    const [layer, t] = placeOf(i);
    const [best, p] = pass.lensAt(layer, t)[0];
    shade(item, p);
    if (best === pass.idAfter(t)) item.classList.add("hit");
  });
  root.replaceChildren(whole);

  const select = chooser(items, nTokens, "aria-selected", (i) => {
    const [layer, t] = placeOf(i);
    const after = pass.idAfter(t);
    const likely = pass.lensAt(layer, t).map(([one, p]) => [token(pass, one), p, one === after]);
    const next = after === undefined ? ["the prompt ends here"] : ["next comes ", token(pass, after)];
    panel.replaceChildren(
      heading("", layer === 0 ? "before block 0" : `after ${names[layer]}`),
      line(make("code", {}, layer === 0 ? "embed" : `blocks.${layer - 1}.resid_post`)),
      line(`${position(t)} `, token(pass, ids[t]), "; ", ...next),
      shares("Likeliest tokens", likely),
    );
  });
  select(items.length - 1);
  root.scrollLeft = whole.scrollWidth; // to the cell that the panel speaks of
}
