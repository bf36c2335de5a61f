// The page's program: plain JavaScript, read top to bottom. It turns the data below the page into what is seen, asks
// nobody for anything, and writes text only as text (textContent), so that no token can become markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const nTokens = data.ids.length;
const byId = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------------------------
// The data. Arrays are little-endian numbers in base64 (refgpt/report/data.py, packed).

/** The numbers of a packed array, in one flat row. */
function unpack({ base64, dtype }) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  if (dtype === "u2") return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  if (dtype === "u4") return Uint32Array.from({ length: bytes.length / 4 }, (_, i) => view.getUint32(4 * i, true));
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

const predicted = {
  width: data.predictions.ids.shape[1],
  ids: unpack(data.predictions.ids),
  p: unpack(data.predictions.p),
  given: unpack(data.predictions.given),
  rank: unpack(data.predictions.rank),
};
const lens = { width: data.lens.ids.shape[2], ids: unpack(data.lens.ids), p: unpack(data.lens.p) };

/** The best tokens of one row of predictions: [id, probability], the likeliest first. */
function bestOf(source, row) {
  const places = Array.from({ length: source.width }, (_, i) => row * source.width + i);
  return places.map((i) => [source.ids[i], source.p[i]]);
}

// A head's pattern holds for each query the keys that it may see: itself and what came before, and of a prefix all.
const STEPS = 65535; // as in data.py
const patterns = unpack(data.pattern);
const seenBy = (query) => Math.max(query + 1, data.prefix_len);
const rowStarts = [0];
for (let query = 0; query < nTokens; query++) rowStarts.push(rowStarts[query] + seenBy(query));

/** How much a query looks at a key, from 0 to 1; null where the mask hides it. */
function weight(layer, head, query, key) {
  if (key >= seenBy(query)) return null;
  return patterns[(layer * data.n_head + head) * rowStarts[nTokens] + rowStarts[query] + key] / STEPS;
}

// ---------------------------------------------------------------------------------------------------------------------
// How things are written and shaded.

/** An element with attributes and children; strings become text, never markup. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A token for the eye: text, and in its midst marks for what cannot be seen. */
function token(id) {
  const [, ...parts] = data.tokens[id];
  const shown = make("bdi", { class: "token" });
  parts.forEach((part, i) => {
    if (part === "") return;
    if (i % 2 === 0) shown.append(part);
    else shown.append(make("i", { class: part.length > 1 ? "long" : "" }, part));
  });
  return shown;
}

/** The same as words, for those who listen. */
const spoken = (id) => data.tokens[id].slice(1).join("").replaceAll("␣", "space ");

/** A share between 0 and 1, in four decimals or, where those would say nothing, in two digits. */
function share(p) {
  if (p === 0) return "0";
  return p >= 0.0001 ? p.toFixed(4) : p.toExponential(1);
}

/** Any number: four decimals and a true minus. */
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(4)}`;

// Of the equality report, in which a number that is none comes as its name.
const elevenDigits = (x) => (typeof x === "string" ? x : x.toFixed(11));
const small = (x) => (typeof x === "string" ? x : x === 0 ? "0" : x.toExponential(2));
const percent = (x) => (typeof x === "string" ? x : `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`);

/** How dark a share is shaded. The root, so that a hundredth can still be told from nothing. */
const shadeOf = (p) => Math.sqrt(Math.min(1, Math.max(0, p)));

function shade(element, p) {
  element.classList.add("shade");
  element.style.setProperty("--shade", shadeOf(p));
}

/** A table of shares with a meter each: [what, share, is it the one that is meant]. */
function shares(label, rows) {
  const body = rows.map(([what, p, here]) => {
    const meter = make("span", { class: "meter" });
    meter.style.setProperty("--share", p);
    return make(
      "tr",
      here ? { class: "here" } : {},
      make("td", {}, what),
      make("td", {}, meter),
      make("td", {}, share(p)),
    );
  });
  return make("table", { "aria-label": label }, make("tbody", {}, ...body));
}

/** A plain table of texts. */
function table(head, rows) {
  const row = (cells, kind) => make("tr", {}, ...cells.map((cell) => make(kind, {}, cell)));
  const body = make("tbody", {}, ...rows.map((cells) => row(cells, "td")));
  return make("table", { class: "plain-table" }, ...(head.length ? [make("thead", {}, row(head, "th"))] : []), body);
}

const show = (panel, ...children) => byId(panel).replaceChildren(...children);
const heading = (name, ...children) => make("h3", name ? { class: name } : {}, ...children);
const line = (...children) => make("p", {}, ...children);
const position = (t) => `position ${t}`;

// ---------------------------------------------------------------------------------------------------------------------
// Choosing one of many: by pointing, by a tap, or with the arrow keys, for which all together are one tab stop.

/**
 * @param {HTMLElement[]} items  in rows, one after another
 * @param {number} columns  how many lie in a row; 1 where rows mean nothing
 * @param {string} state  the attribute that tells which one is chosen
 * @param {(i: number) => void} choose  called with the one that becomes chosen
 */
function chooser(items, columns, state, choose) {
  const places = new Map(items.map((item, i) => [item, i]));
  let chosen = 0;

  function select(i) {
    if (items[i].getAttribute(state) === "true") return;
    items[chosen].setAttribute(state, "false");
    items[chosen].tabIndex = -1;
    chosen = i;
    items[i].setAttribute(state, "true");
    items[i].tabIndex = 0;
    choose(i);
  }

  function move(event) {
    const row = columns > 1 ? columns : items.length;
    const first = chosen - (chosen % row);
    const last = Math.min(first + row, items.length) - 1;
    const goals = {
      ArrowLeft: Math.max(chosen - 1, first),
      ArrowRight: Math.min(chosen + 1, last),
      ArrowUp: chosen - columns,
      ArrowDown: chosen + columns,
      Home: first,
      End: last,
    };
    const goal = goals[event.key];
    if (goal === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (goal >= 0 && goal < items.length) items[goal].focus();
  }

  for (const item of items) {
    item.tabIndex = -1;
    item.setAttribute(state, "false");
    item.addEventListener("focus", () => select(places.get(item)));
    // Moved, not entered: scrolling brings items under a pointer that rests, which would fight with the keyboard.
    item.addEventListener("pointermove", () => select(places.get(item)));
    item.addEventListener("click", () => item.focus());
    item.addEventListener("keydown", move);
  }
  return select;
}

// ---------------------------------------------------------------------------------------------------------------------
// The head of the page.

byId("maker").textContent = `${data.maker} inspect`;
byId("facts").append(...data.facts.flatMap(([name, fact]) => [make("dt", {}, name), make("dd", {}, fact)]));
for (const p of [0, 0.01, 0.1, 0.5, 1]) {
  const swatch = make("b", {}, String(p));
  shade(swatch, p);
  byId("legend").append(swatch);
}
if (data.prefix_len > 0) {
  byId("prefix-note").textContent =
    `Prefix mask: the first ${data.prefix_len} positions see one another. A row among them has already seen the ` +
    "token that it gives a probability to, so up to there the shading is no forecast.";
  byId("prefix-note").hidden = false;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens.

function drawTokens() {
  const items = data.ids.map((id, t) => {
    const given = t > 0 ? predicted.given[t - 1] : null;
    const odds = given === null ? "nothing before it" : `probability ${share(given)}`;
    const item = make("span", { role: "option", "aria-label": `${position(t)}: ${spoken(id)}, ${odds}` }, token(id));
    if (given === null) item.classList.add("plain");
    else shade(item, given);
    return item;
  });
  items.push(make("span", { role: "option", class: "plain", "aria-label": "what comes next" }, "next?"));
  byId("token-strip").append(...items);

  const select = chooser(items, 1, "aria-selected", (t) => {
    const id = data.ids[t]; // undefined after the last one
    const likely = t > 0 ? bestOf(predicted, t - 1) : [];
    const parts = [];
    if (t === nTokens) parts.push(heading("", "What comes next"), line(`after ${position(t - 1)}`));
    else parts.push(heading("", `Position ${t}: `, token(id)), line(`id ${id}, bytes ${data.tokens[id][0] || "none"}`));
    if (t === 0) parts.push(line("Nothing comes before it, so nothing gave it a probability."));
    else if (t < nTokens) {
      const rank = predicted.rank[t - 1];
      parts.push(line(`probability ${share(predicted.given[t - 1])}, rank ${rank} of ${data.n_vocab}`));
    }
    if (likely.length)
      parts.push(
        shares(
          "Likeliest tokens",
          likely.map(([one, p]) => [token(one), p, one === id]),
        ),
      );
    show("token-panel", ...parts);
  });
  select(nTokens);
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention. One state: a layer, a head, a query and a key.

const look = { layer: 0, head: 0, query: nTokens - 1, key: nTokens - 1, direction: "from" };
let attentionTokens = [];

/** The two ends of the scale of shades, as the style has them now: light or dark. */
function scaleEnds() {
  const style = getComputedStyle(document.documentElement);
  return ["--low", "--high"].map((name) => {
    const digits = style.getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((i) => parseInt(digits.slice(i, i + 2), 16));
  });
}

/** Paint a square of shares, row by row; null is left blank. */
function paint(canvas, size, value) {
  const [low, high] = scaleEnds();
  canvas.width = canvas.height = size;
  const picture = new ImageData(size, size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const p = value(row, column);
      if (p === null) continue;
      const s = shadeOf(p);
      const colour = low.map((from, i) => Math.round(from + s * (high[i] - from)));
      picture.data.set([...colour, 255], 4 * (row * size + column));
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

const paintMap = () => paint(byId("map-canvas"), nTokens, (query, key) => weight(look.layer, look.head, query, key));

/** A head's pattern in at most 32 x 32 dots, each as dark as the darkest place in it. */
function paintThumb(canvas, layer, head) {
  const size = Math.min(nTokens, 32);
  const edge = (i) => Math.floor((i * nTokens) / size);
  paint(canvas, size, (row, column) => {
    let most = null;
    for (let query = edge(row); query < edge(row + 1); query++) {
      for (let key = edge(column); key < edge(column + 1); key++) {
        const p = weight(layer, head, query, key);
        if (p !== null && (most === null || p > most)) most = p;
      }
    }
    return most;
  });
}

function paintAll() {
  paintMap();
  document.querySelectorAll("#heads canvas").forEach((canvas, i) => {
    paintThumb(canvas, Math.floor(i / data.n_head), i % data.n_head);
  });
}

function drawHeads() {
  const box = byId("heads");
  const thumb = data.n_head <= 8 ? 44 : 24;
  box.style.gridTemplateColumns = `auto repeat(${data.n_head}, ${thumb}px)`;
  box.style.setProperty("--thumb", `${thumb}px`);
  box.append(make("span"));
  for (let head = 0; head < data.n_head; head++) box.append(make("span", { class: "top" }, String(head)));
  const items = [];
  for (let layer = 0; layer < data.n_layer; layer++) {
    box.append(make("span", {}, String(layer)));
    for (let head = 0; head < data.n_head; head++) {
      const name = `Layer ${layer}, head ${head}`;
      const item = make("button", { role: "radio", type: "button", "aria-label": name, title: name });
      item.append(make("canvas", { "aria-hidden": "true" }));
      items.push(item);
      box.append(item);
    }
  }
  const select = chooser(items, data.n_head, "aria-checked", (i) => {
    look.layer = Math.floor(i / data.n_head);
    look.head = i % data.n_head;
    byId("head-name").textContent = `Layer ${look.layer}, head ${look.head}`;
    byId("head-tap").textContent = `blocks.${look.layer}.pattern [${look.head}]`;
    look.key = strongestKey();
    paintMap();
    showAttention();
  });
  return () => select(0);
}

function drawAttentionTokens() {
  attentionTokens = data.ids.map((id, t) =>
    make("span", { role: "option", "aria-label": `${position(t)}: ${spoken(id)}` }, token(id)),
  );
  byId("attention-strip").append(...attentionTokens);
  return chooser(attentionTokens, 1, "aria-selected", (t) => {
    look.query = t;
    look.key = strongestKey();
    showAttention();
  });
}

/** The positions with the largest weights: [position, weight], the largest first. */
function strongest(weightOf) {
  const all = data.ids.map((_, t) => [t, weightOf(t)]).filter(([, p]) => p !== null);
  return all.sort((a, b) => b[1] - a[1]).slice(0, 6);
}

const strongestKey = () => strongest((key) => weight(look.layer, look.head, look.query, key))[0][0];

/** Everything about the state but the map's picture. */
function showAttention() {
  const { layer, head, query, key, direction } = look;
  attentionTokens.forEach((item, t) => {
    const p = direction === "from" ? weight(layer, head, query, t) : weight(layer, head, t, query);
    item.classList.toggle("hidden", p === null);
    shade(item, p ?? 0);
  });
  const rows = (found) => found.map(([t, p]) => [make("span", {}, `${t} `, token(data.ids[t])), p, t === query]);
  show(
    "attention-panel",
    heading("", `${query} `, token(data.ids[query]), " looks at"),
    shares("Looks at", rows(strongest((t) => weight(layer, head, query, t)))),
    heading("next", "and is looked at by"),
    shares("Is looked at by", rows(strongest((t) => weight(layer, head, t, query)))),
  );
  const cell = 100 / nTokens;
  Object.assign(byId("map-row").style, { top: `${cell * query}%`, height: `${cell}%` });
  Object.assign(byId("map-cell").style, {
    top: `${cell * query}%`,
    left: `${cell * key}%`,
    width: `${cell}%`,
    height: `${cell}%`,
  });
  const p = weight(layer, head, query, key);
  byId("map-value").replaceChildren(
    `query ${query} `,
    token(data.ids[query]),
    ` to key ${key} `,
    token(data.ids[key]),
    p === null ? ": hidden by the mask" : `: ${share(p)}`,
  );
}

function drawMap(selectQuery) {
  const map = byId("map");
  const within = (i) => Math.min(Math.max(i, 0), nTokens - 1);

  function go(query, key) {
    selectQuery(within(query)); // if it is another, with the key that it looks at most
    look.key = within(key);
    showAttention();
  }

  function point(event) {
    const box = map.getBoundingClientRect();
    const cell = box.width / nTokens;
    go(Math.floor((event.clientY - box.top) / cell), Math.floor((event.clientX - box.left) / cell));
  }

  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(look.query + steps[event.key][0], look.key + steps[event.key][1]);
  });
}

function drawAttention() {
  const selectFirstHead = drawHeads();
  const selectQuery = drawAttentionTokens();
  drawMap(selectQuery);
  for (const input of document.querySelectorAll('input[name="direction"]')) {
    input.addEventListener("change", () => {
      look.direction = input.value;
      showAttention();
    });
  }
  selectQuery(nTokens - 1);
  selectFirstHead();
  paintAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables of cells that can be chosen: the logit lens and the equality report.

/** A table with a title for each row: the element, and its cells in one row after another. */
function grid(name, label, head, rows) {
  const items = [];
  const body = rows.map(([title, cells]) => {
    const row = cells.map((cell) => make("td", { role: "gridcell" }, ...cell));
    items.push(...row);
    return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, title), ...row);
  });
  const top = make(
    "tr",
    { role: "row" },
    ...head.map((cell) => make("th", { scope: "col", role: "columnheader" }, ...cell)),
  );
  const whole = make("table", { class: `cells ${name}`, role: "grid", "aria-label": label });
  whole.append(make("thead", { role: "rowgroup" }, top), make("tbody", { role: "rowgroup" }, ...body));
  return { whole, items };
}

function drawLens() {
  const names = ["embed", ...Array.from({ length: data.n_layer }, (_, i) => `block ${i}`)];
  const topAt = (layer, t) => token(lens.ids[(layer * nTokens + t) * lens.width]);
  const rows = names.map((name, layer) => [name, data.ids.map((_, t) => [topAt(layer, t)])]);
  const { whole, items } = grid("lens", "Logit lens", [["from"], ...data.ids.map((id) => [token(id)])], rows);
  items.forEach((item, i) => {
    shade(item, lens.p[i * lens.width]);
    if (lens.ids[i * lens.width] === data.ids[(i % nTokens) + 1]) item.classList.add("hit");
  });
  byId("lens-box").append(whole);

  const select = chooser(items, nTokens, "aria-selected", (i) => {
    const layer = Math.floor(i / nTokens);
    const t = i % nTokens;
    const likely = bestOf(lens, i).map(([one, p]) => [token(one), p, one === data.ids[t + 1]]);
    const next = t + 1 < nTokens ? ["next comes ", token(data.ids[t + 1])] : ["the prompt ends here"];
    show(
      "lens-panel",
      heading("", layer === 0 ? "before block 0" : `after ${names[layer]}`),
      line(make("code", {}, layer === 0 ? "embed" : `blocks.${layer - 1}.resid_post`)),
      line(`${position(t)} `, token(data.ids[t]), "; ", ...next),
      shares("Likeliest tokens", likely),
    );
  });
  select(items.length - 1);
  byId("lens-box").scrollLeft = whole.scrollWidth; // to the cell that the panel speaks of
}

// ---------------------------------------------------------------------------------------------------------------------
// Attribution: a bar for each writer, in groups.

function drawAttribution() {
  const { token: id, embed, heads, mlps, attn_biases: biases, bias, total, logit } = data.attribution;
  const biased = biases.some((value) => value !== 0); // of attention's output, which GPT-J has not
  const blocks = heads.map((terms, layer) => ({
    name: String(layer),
    bars: [
      ...terms.map((value, head) => ({ name: `layer ${layer}, head ${head}`, value })),
      ...(biased ? [{ name: `layer ${layer}, attention's bias`, value: biases[layer] }] : []),
      { name: `layer ${layer}, MLP`, value: mlps[layer], striped: true },
    ],
  }));
  const groups = [
    { name: "embed", bars: [{ name: "embedding", value: embed }] },
    ...blocks,
    { name: "bias", bars: [{ name: "biases of LayerNorm and head", value: bias }] },
  ];
  byId("attribution-sum").replaceChildren(
    "The likeliest next token is ",
    token(id),
    `: its terms sum to ${signed(total)}; the engine computed ${signed(logit)}.`,
  );

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
  byId("bars-box").append(chart);

  const select = chooser(items, 1, "aria-selected", (i) => {
    const [name, value] = shown[i];
    show("attribution-panel", heading("", name), line(`adds ${signed(value)} to the logit of `, token(id)));
  });
  select(values.indexOf(Math.max(...values)));

  const head = ["layer", ...heads[0].map((_, i) => `head ${i}`), ...(biased ? ["bias"] : []), "MLP", "sum"];
  const sumOf = (terms) => terms.reduce((sum, term) => sum + term, 0);
  const rows = heads.map((terms, layer) => [
    String(layer),
    ...[
      ...terms,
      ...(biased ? [biases[layer]] : []),
      mlps[layer],
      sumOf(terms) + biases[layer] + mlps[layer],
    ].map(signed),
  ]);
  const filled = (name, value) => [name, ...Array(heads[0].length + (biased ? 2 : 1)).fill(""), signed(value)];
  byId("attribution-table").append(
    table(head, [filled("embed", embed), ...rows, filled("bias", bias), filled("total", total)]),
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// Equality.

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
  const layers = Array.from({ length: data.n_layer }, (_, i) => i);
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
  const columns = ["activation", "error", "bound", "of bound", "max error", "cosine", ""];
  byId("equality-table").append(table(columns, lines));
}

drawTokens();
drawAttention();
drawLens();
drawAttribution();
drawEquality();
