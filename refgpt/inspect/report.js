// The page's program: the parts that only a report has, and a call for each view. It turns the data below the page into
// what is seen, and asks nobody for anything.

import { drawAttention } from "./views/attention.js";
import { attributionTable, drawAttribution } from "./views/attribution.js";
import { chooser } from "./views/chooser.js";
import { byId, grid, heading, line, make, marked, position, shade, share, shares } from "./views/draw.js";
import { signed, spoken, table, token } from "./views/draw.js";
import { drawLens } from "./views/lens.js";
import { readPass } from "./views/pass.js";

const data = JSON.parse(byId("data").textContent);
const pass = readPass(data);
const show = (panel, ...children) => byId(panel).replaceChildren(...children);

// ---------------------------------------------------------------------------------------------------------------------
// The head of the page.

byId("maker").textContent = `${data.maker} inspect`;
byId("facts").append(...data.facts.flatMap(([name, fact]) => [make("dt", {}, name), make("dd", {}, fact)]));
for (const p of [0, 0.01, 0.1, 0.5, 1]) {
  const swatch = make("b", {}, String(p));
  shade(swatch, p);
  byId("legend").append(swatch);
}
if (data.text?.some((parts) => parts.length)) {
  const [prompt, continuation] = data.text;
  const n = data.continuation.length;
  byId("prompt").append(marked(prompt));
  if (n > 0) byId("prompt").append(make("ins", {}, marked(continuation)));
  byId("prompt-note").textContent = n > 0
    ? `Underlined: the ${n} tokens that the model writes next if it always takes the likeliest.`
    : "The model ends the text here.";
  byId("prompt").hidden = byId("prompt-note").hidden = false;
}
if (pass.prefixLen > 0) {
  byId("prefix-note").textContent =
    `Prefix mask: the first ${pass.prefixLen} positions see one another. A row among them has already seen the ` +
    "token that it gives a probability to, so up to there the shading is no forecast.";
  byId("prefix-note").hidden = false;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens.

function drawTokens() {
  const items = pass.ids.map((id, t) => {
    const given = t > 0 ? pass.given[t - 1] : null;
    const odds = given === null ? "nothing before it" : `probability ${share(given)}`;
    const label = `${position(t)}: ${spoken(pass, id)}, ${odds}`;
    const item = make("span", { role: "option", "aria-label": label }, token(pass, id));
    if (given === null) item.classList.add("plain");
    else shade(item, given);
    return item;
  });
  items.push(make("span", { role: "option", class: "plain", "aria-label": "what comes next" }, "next?"));
  byId("token-strip").append(...items);

  const select = chooser(items, 1, "aria-selected", (t) => {
    const id = pass.ids[t]; // undefined after the last one
    const likely = t > 0 ? pass.predictedAfter(t - 1) : [];
    const parts = [];
    if (t === pass.nTokens) parts.push(heading("", "What comes next"), line(`after ${position(t - 1)}`));
    else {
      parts.push(heading("", `Position ${t}: `, token(pass, id)));
      parts.push(line(`id ${id}, bytes ${pass.tokens[id][0] || "none"}`));
    }
    if (t === 0) parts.push(line("Nothing comes before it, so nothing gave it a probability."));
    else if (t < pass.nTokens) {
      const rank = pass.rank[t - 1];
      parts.push(line(`probability ${share(pass.given[t - 1])}, rank ${rank} of ${pass.nVocab}`));
    }
    if (likely.length)
      parts.push(
        shares(
          "Likeliest tokens",
          likely.map(([one, p]) => [token(pass, one), p, one === id]),
        ),
      );
    show("token-panel", ...parts);
  });
  select(pass.nTokens);
}

// ---------------------------------------------------------------------------------------------------------------------
// Equality.

// Of the equality report, in which a number that is none comes as its name.
const elevenDigits = (x) => (typeof x === "string" ? x : x.toFixed(11));
const small = (x) => (typeof x === "string" ? x : x === 0 ? "0" : x.toExponential(2));
const percent = (x) => (typeof x === "string" ? x : `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`);

function drawEquality() {
  const report = data.verify;
  if (report === null) {
    byId("equality-sum").textContent = "The comparison was left out when this page was made.";
    byId("equality-body").hidden = byId("equality-details").hidden = true;
    return;
  }
  const broken = report.taps.filter(([, ok]) => !ok).length;
  const n = report.taps.length;
  const verdict = report.ok
    ? `All ${n} activations are within their bounds.`
    : `${broken} of ${n} activations are beyond their bounds, first ${report.first_broken}. ${report.expected}`;
  byId("equality-sum").textContent =
    `${verdict} End to end the logits differ by at most ${small(report.logit_error)} of their standard deviation, ` +
    `with the same likeliest token at ${percent(report.same_argmax)} of the positions.`;

  // A row for each block, a column for each activation; those outside the blocks have a row of their own.
  const found = new Map(report.taps.map((tap) => [tap[0], tap]));
  const parts = report.taps.map(([name]) => name.match(/^blocks\.0\.(.*)$/)?.[1]).filter(Boolean);
  const outside = report.taps.map(([name]) => name).filter((name) => !name.startsWith("blocks."));
  const layers = Array.from({ length: pass.nLayer }, (_, i) => i);
  const namesIn = (layer) => parts.map((part) => `blocks.${layer}.${part}`);
  const cell = (name) => [percent(found.get(name)[4])];
  const head = (names) => [["of bound"], ...names.map((name) => [name])];
  const rows = layers.map((layer) => [`block ${layer}`, namesIn(layer).map(cell)]);
  const grids = [
    grid("errors", "Errors in the blocks", head(parts), rows),
    grid("errors", "Errors outside the blocks", head(outside), [["whole model", outside.map(cell)]]),
  ];
  byId("equality-box").append(...grids.map(({ whole }) => whole));

  const items = grids.flatMap(({ items }) => items);
  const shown = [...layers.flatMap(namesIn), ...outside].map((name) => found.get(name));
  const select = chooser(items, parts.length, "aria-selected", (i) => {
    const [name, ok, error, bound, part, cosine, largest] = shown[i];
    const facts = [
      ["error nearest its bound", small(error)],
      ["that bound", small(bound)],
      ["of the bound", percent(part)],
      ["largest error", small(largest)],
      ["cosine", elevenDigits(cosine)],
      ["verdict", ok ? "within" : "BROKEN"],
    ];
    show("equality-panel", heading("", make("code", {}, name)), table([], facts));
  });
  items.forEach((item, i) => {
    const [, ok, , , part] = shown[i];
    shade(item, typeof part === "string" ? 1 : part);
    item.classList.toggle("broken", !ok);
  });
  select(0);

  const lines = report.taps.map(([name, ok, error, bound, part, cosine, largest]) => {
    const verdict = ok ? "ok" : "BROKEN";
    return [name, small(error), small(bound), percent(part), small(largest), elevenDigits(cosine), verdict];
  });
  const columns = ["activation", "error", "bound", "of bound", "max error", "cosine", "verdict"];
  byId("equality-table").append(table(columns, lines));
}

function drawAll() {
  drawTokens();
  const paintAgain = drawAttention(byId("attention-view"), pass);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAgain);
  drawLens(byId("lens-box"), byId("lens-panel"), pass);
  const { token: id, total, logit } = pass.attribution;
  byId("attribution-sum").replaceChildren(
    "The likeliest next token is ",
    token(pass, id),
    `: its terms sum to ${signed(total)}; the engine computed ${signed(logit)}.`,
  );
  drawAttribution(byId("bars-box"), byId("attribution-panel"), pass);
  byId("attribution-table").append(attributionTable(pass));
  drawEquality();
}

drawAll();
