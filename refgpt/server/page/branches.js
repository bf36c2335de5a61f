// All branches at a glance, and two to four of them side by side.

import { flow, inked, percent, Pieces, probability, stepOf, textOf } from "./tokens.js";
import { ROOT } from "./tree.js";
import { make } from "./views/draw.js";

const MOST_COMPARED = 4;
const MOST_WORDS = 90; // characters of a branch that are listed
const MOST_DOTS = 120; // tokens in its strip

/** A line of colours, one for each token. */
function strip(tokens) {
  const steps = tokens.slice(0, MOST_DOTS).map((token) => stepOf(token) ?? 0);
  const colours = steps.map(
    (step, i) => `var(--h${step}-strong) ${(100 * i) / steps.length}% ${(100 * (i + 1)) / steps.length}%`,
  );
  const line = make("span", { class: "dna", "aria-hidden": "true" });
  if (colours.length) line.style.backgroundImage = `linear-gradient(90deg, ${colours.join(", ")})`;
  line.style.setProperty("--long", Math.max(8, steps.length) / MOST_DOTS);
  return line;
}

/** The figures of tokens with probabilities: how many, the geometric mean and the sum of the logarithms. */
function figuresOf(tokens) {
  const logprobs = tokens.map(({ logprob }) => logprob).filter((x) => x !== null);
  const sum = logprobs.reduce((total, x) => total + x, 0);
  return { n: tokens.length, mean: logprobs.length ? Math.exp(sum / logprobs.length) : null, sum };
}

const counted = (n) => `${n} token${n === 1 ? "" : "s"}`;

/** The names of the adapters that wrote nodes, each once. */
const adaptersOf = (nodes) => [
  ...new Set(nodes.filter(({ kind, adapter }) => kind === "generated" && adapter).map(({ adapter }) => adapter)),
];

/** The nodes from one to the next fork or the end. */
function limbFrom(tree, node) {
  const limb = [node];
  for (let next = tree.children(node.id); next.length === 1; next = tree.children(next[0].id)) limb.push(next[0]);
  return limb;
}

/**
 * List the branches of a tree.
 *
 * @param {HTMLElement} root  a list
 * @param {Tree} tree
 * @param {Set<number>|null} compared  the leaves that are chosen for a comparison, while there is one
 * @param {{walk, compare, drop}} on
 */
export function drawBranches(root, tree, compared, on) {
  const path = new Set(tree.path().map((node) => node.id));
  const leaves = tree.leaves.map((node) => node.id);

  function item(node) {
    const limb = limbFrom(tree, node);
    const last = limb.at(-1);
    const tokens = limb.flatMap((one) => one.tokens);
    const words = textOf(tokens).trim().replace(/\s+/g, " ");
    const { n, mean } = figuresOf(limb.filter((one) => one.kind !== "written").flatMap((one) => one.tokens));
    const number = leaves.indexOf(last.id) + 1;
    const shown = words.length > MOST_WORDS ? `${words.slice(0, MOST_WORDS)}…` : words || "(nothing)";
    const go = make("button", { type: "button", class: "limb", "data-mark": `limb-${last.id}` });
    if (path.has(last.id)) go.setAttribute("aria-current", last.id === tree.current ? "true" : "step");
    go.append(make("span", { class: "words" }, make("bdi", {}, ...flow(shown))), strip(tokens));
    const figures = [number ? `branch ${number}` : "shared", counted(tokens.length)];
    if (n && mean !== null) figures.push(`mean ${percent(mean)}`);
    const adapters = adaptersOf(limb);
    if (adapters.length) figures.push(`with ${adapters.join(", ")}`);
    go.append(make("span", { class: "limb-figures" }, figures.join(" · ")));
    go.addEventListener("click", () => on.walk(last.id));
    const row = make("div", { class: "limb-row" }, go);
    if (number && leaves.length > 1) row.append(compared ? compareBox(number, last.id) : dropButton(number, node.id));
    const below = tree.children(last.id);
    return make("li", {}, row, ...(below.length ? [make("ul", {}, ...below.map(item))] : []));
  }

  function compareBox(number, id) {
    const box = make("input", { type: "checkbox", "aria-label": `Compare branch ${number}` });
    box.dataset.mark = `compare-${id}`;
    box.checked = compared.has(id);
    box.disabled = !box.checked && compared.size >= MOST_COMPARED;
    box.addEventListener("change", () => on.compare(id, box.checked));
    return box;
  }

  function dropButton(number, id) {
    const button = make("button", { type: "button", class: "drop", "aria-label": `Delete branch ${number}` });
    button.append(make("i", { class: "icon icon-close" }));
    button.addEventListener("click", () => on.drop(id));
    return button;
  }

  const focused = root.contains(document.activeElement) ? document.activeElement : null;
  root.replaceChildren(...tree.children(ROOT).map(item));
  const current = root.querySelector('[aria-current="true"]');
  if (focused) {
    const same = root.querySelector(`[data-mark="${focused.dataset.mark}"]`);
    (same ?? current)?.focus({ preventScroll: true });
  }
  if (current) root.scrollTop = current.offsetTop - (root.clientHeight - current.offsetHeight) / 2;
}

/** The length of what paths have in common. */
function commonOf(paths) {
  let n = 0;
  while (paths.every((path) => path[n] !== undefined && path[n].id === paths[0][n].id)) n++;
  return n;
}

/** Tokens in their colours, to be read only. */
function read(tokens) {
  const pieces = new Pieces();
  return tokens.map((token) => {
    const p = probability(token);
    const step = stepOf(token);
    const shown = make("span", { class: step === null ? "r" : `r h${step}`, title: p === null ? "" : percent(p) });
    shown.append(...inked(pieces.push(token) ?? ""));
    return shown;
  });
}

/** What is compared where the reader has chosen nothing: the current branch, and the latest others. */
export function latestBranches(tree) {
  const others = tree.leaves.map((leaf) => leaf.id).filter((id) => id !== tree.current);
  return [...others.slice(1 - MOST_COMPARED), tree.current].sort((a, b) => a - b);
}

/** Show branches side by side, from where they part. */
export function drawComparison(root, tree, ids, walk) {
  const leaves = tree.leaves.map((node) => node.id);
  const paths = ids.map((id) => tree.path(id));
  const n = commonOf(paths);
  const before = textOf(paths[0].slice(0, n).flatMap((node) => node.tokens));
  const shared = before.length > 240 ? `…${before.slice(-240)}` : before;
  const adapted = adaptersOf(paths.flat()).length > 0;
  const columns = paths.map((path, i) => {
    const own = path.slice(n);
    const { n: count, mean, sum } = figuresOf(own.flatMap((node) => node.tokens));
    const number = leaves.indexOf(ids[i]) + 1;
    const button = make("button", { type: "button", class: "plain small" }, `Go on with branch ${number}`);
    button.addEventListener("click", () => walk(ids[i]));
    const seed = own.find((node) => node.seed !== null)?.seed;
    const facts = [
      ["tokens", String(count)],
      ["average probability", mean === null ? "–" : percent(mean)],
      ["log-probability", mean === null ? "–" : sum.toFixed(1).replace("-", "−")],
      ["seed", seed === undefined ? "–" : String(seed)],
      ...(adapted ? [["adapter", adaptersOf(own).join(", ") || "none"]] : []),
    ].flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
    return make(
      "article",
      { class: "column", "aria-label": `Branch ${number}` },
      make("h3", {}, `Branch ${number}`),
      make("div", { class: "column-text" }, ...read(own.flatMap((node) => node.tokens))),
      make("dl", {}, ...facts),
      button,
    );
  });
  root.replaceChildren(
    make("p", { class: "shared" }, make("bdi", {}, ...flow(shared))),
    make("div", { class: "columns" }, ...columns),
  );
}
