// Attribution: a bar for each writer of the residual stream, in groups.

import { chooser } from "./chooser.js";
import { heading, line, make, signed, table, token } from "./draw.js";

/** The groups of bars: the embedding, each block with its heads and its MLP, the biases. */
function groupsOf({ embed, heads, mlps, attn_biases: biases, bias }, biased) {
  const blocks = heads.map((terms, layer) => ({
    name: String(layer),
    bars: [
      ...terms.map((value, head) => ({ name: `layer ${layer}, head ${head}`, value })),
      ...(biased ? [{ name: `layer ${layer}, attention's bias`, value: biases[layer] }] : []),
      { name: `layer ${layer}, MLP`, value: mlps[layer], striped: true },
    ],
  }));
  return [
    { name: "embed", bars: [{ name: "embedding", value: embed }] },
    ...blocks,
    { name: "bias", bars: [{ name: "biases of LayerNorm and head", value: bias }] },
  ];
}

/**
 * Draw the terms of a logit.
 *
 * @param {HTMLElement} root  for the bars, in a box that scrolls; emptied first
 * @param {HTMLElement} panel  for what is said about the chosen bar
 * @param {object} pass  of `readPass`
 */
export function drawAttribution(root, panel, pass) {
  const { attribution } = pass;
  const biased = attribution.attn_biases.some((value) => value !== 0); // of attention's output, which GPT-J has not
  const groups = groupsOf(attribution, biased);
  const values = groups.flatMap(({ bars }) => bars.map(({ value }) => value));
  const top = Math.max(0, ...values);
  const range = top - Math.min(0, ...values) || 1;
  const items = [];
  const shown = [];
  const chart = make("div", {
    class: "bars",
    role: "listbox",
    "aria-label": "Terms of the logit",
    "aria-orientation": "horizontal",
  });
  const scale = make("div", { class: "scale", "aria-hidden": "true" });
  for (const mark of [top, 0, top - range].filter((x) => x === 0 || Math.abs(x) > range / 12)) {
    const text = make("span", {}, mark === 0 ? "0" : mark.toFixed(2).replace("-", "−"));
    text.style.top = `${(100 * (top - mark)) / range}%`;
    scale.append(text);
  }
  chart.append(scale);
  for (const { name, bars } of groups) {
    const box = make("div");
    box.style.setProperty("--zero", top / range);
    for (const { name: full, value, striped } of bars) {
      const item = make("div", { class: "bar", role: "option", "aria-label": `${full}: ${signed(value)}` }, make("i"));
      item.classList.toggle("striped", striped === true);
      item.classList.toggle("below", value < 0);
      item.style.setProperty("--top", (top - Math.max(value, 0)) / range);
      item.style.setProperty("--tall", Math.abs(value) / range);
      items.push(item);
      shown.push([full, value]);
      box.append(item);
    }
    chart.append(make("div", { class: "group", role: "presentation" }, box, name));
  }
  root.replaceChildren(chart);

  const select = chooser(items, 1, "aria-selected", (i) => {
    const [name, value] = shown[i];
    panel.replaceChildren(
      heading("", name),
      line(`adds ${signed(value)} to the logit of `, token(pass, attribution.token)),
    );
  });
  const largest = values.indexOf(Math.max(...values));
  select(largest);
  const off = items[largest].getBoundingClientRect().left - root.getBoundingClientRect().left;
  root.scrollLeft += off - root.clientWidth / 2; // into sight
}

/** The same terms as a table. */
export function attributionTable({ attribution }) {
  const { embed, heads, mlps, attn_biases: biases, bias, total } = attribution;
  const biased = biases.some((value) => value !== 0);
  const head = ["layer", ...heads[0].map((_, i) => `head ${i}`), ...(biased ? ["bias"] : []), "MLP", "sum"];
  const sumOf = (terms) => terms.reduce((sum, term) => sum + term, 0);
  const rows = heads.map((terms, layer) => [
    String(layer),
    ...[...terms, ...(biased ? [biases[layer]] : []), mlps[layer], sumOf(terms) + biases[layer] + mlps[layer]].map(
      signed,
    ),
  ]);
  const filled = (name, value) => [name, ...Array(heads[0].length + (biased ? 2 : 1)).fill(""), signed(value)];
  return table(head, [filled("embed", embed), ...rows, filled("bias", bias), filled("total", total)]);
}
