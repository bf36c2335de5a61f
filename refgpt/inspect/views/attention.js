// Attention: all heads as small pictures, the chosen one as a map, and the tokens shaded by where it looks.

import { chooser } from "./chooser.js";
import { heading, make, position, shade, shadeOf, share, shares, spoken, token } from "./draw.js";

/** What heads of a kind attend to, in the order of the list. The kinds are those of refgpt/inspect/heads.py. */
const KINDS = {
  induction: "to what followed the same token earlier",
  "duplicate token": "to the same token earlier",
  "previous token": "to the position before",
  "same position": "to its own position",
  "first token": "to the first token",
};
/** Heads of a kind that are listed; the others show their title when they are chosen. */
const MOST_LISTED = 6;

/** The elements of the view, by name. */
function elements() {
  const parts = {
    heads: make("div", { id: "heads", role: "radiogroup", "aria-label": "Head; arrow keys go to its neighbours" }),
    name: make("span", { id: "head-name", "aria-live": "polite" }),
    tap: make("code", { id: "head-tap" }),
    title: make("p", { class: "head-title", id: "head-title", "aria-live": "polite" }),
    titled: make("div", { class: "titled", id: "head-titles" }),
    map: make("div", {
      class: "map",
      id: "map",
      role: "application",
      tabindex: "0",
      "aria-describedby": "map-value",
      "aria-label": "Map of the head's pattern: rows are queries, columns are keys; arrow keys move the mark",
    }),
    canvas: make("canvas", { id: "map-canvas", "aria-hidden": "true" }),
    row: make("i", { class: "map-row", id: "map-row" }),
    cell: make("i", { class: "map-cell", id: "map-cell" }),
    value: make("p", { class: "value", id: "map-value", "aria-live": "polite" }),
    strip: make("div", {
      class: "strip",
      id: "attention-strip",
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": "Token whose attention is shown",
    }),
    panel: make("div", { class: "panel", id: "attention-panel" }),
    directions: ["from", "to"].map((value) => make("input", { type: "radio", name: "direction", value })),
  };
  parts.map.append(parts.canvas, parts.row, parts.cell);
  return parts;
}

/** Where they stand. */
function layout({ heads, titled, name, tap, title, map, value, strip, panel, directions: [from, to] }) {
  return [
    make("div", { class: "heads" }, heading("", "Heads"), titled, make("div", { class: "scroll heads-box" }, heads)),
    make(
      "div",
      { class: "map-box" },
      heading("", name, " ", tap),
      title,
      map,
      make("p", { class: "axis" }, "query down, key across; blank: hidden by the mask"),
      value,
    ),
    make(
      "div",
      { class: "bench-tokens" },
      make(
        "fieldset",
        { class: "choice" },
        make("legend", {}, "Shade the tokens by"),
        make("label", {}, from, " where the chosen one looks"),
        make("label", {}, to, " how much they look at it"),
      ),
      strip,
    ),
    panel,
  ];
}

/** The two ends of the scale of shades, as the style has them now: light or dark. */
function scaleEnds(element) {
  return ["--low", "--high"].map((name) => {
    element.style.color = `var(${name})`;
    return getComputedStyle(element).color.match(/\d+/g).map(Number);
  });
}

/** Paint a square of shares, row by row; null is left blank. */
function paint(canvas, size, value) {
  const [low, high] = scaleEnds(canvas);
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

/** A head's pattern in at most 32 x 32 dots, each as dark as the darkest place in it. */
function paintThumb(canvas, pass, layer, head) {
  const size = Math.min(pass.nTokens, 32);
  const edge = (i) => Math.floor((i * pass.nTokens) / size);
  paint(canvas, size, (row, column) => {
    let most = null;
    for (let query = edge(row); query < edge(row + 1); query++) {
      for (let key = edge(column); key < edge(column + 1); key++) {
        const p = pass.weight(layer, head, query, key);
        if (p !== null && (most === null || p > most)) most = p;
      }
    }
    return most;
  });
}

/**
 * Draw the attention of a pass into an element.
 *
 * @param {HTMLElement} root  is emptied first
 * @param {object} pass  of `readPass`
 * @param {{layer: number, head: number}} [start]  the head that is chosen to begin with; kept up to date
 * @returns {() => void} paints the pictures again, after light and dark have changed
 */
export function drawAttention(root, pass, start = { ...pass.opening }) {
  const { nTokens, nLayer, nHead, ids } = pass;
  const parts = elements();
  root.replaceChildren(...layout(parts));
  // One state: a layer, a head, a query and a key.
  const look = Object.assign(start, { query: nTokens - 1, key: nTokens - 1, direction: "from" });
  const weight = (query, key) => pass.weight(look.layer, look.head, query, key);

  const paintMap = () => paint(parts.canvas, nTokens, weight);

  /** The positions with the largest weights: [position, weight], the largest first. */
  function strongest(weightOf) {
    const all = ids.map((_, t) => [t, weightOf(t)]).filter(([, p]) => p !== null);
    return all.sort((a, b) => b[1] - a[1]).slice(0, 6);
  }

  const strongestKey = () => strongest((key) => weight(look.query, key))[0][0];

  const items = ids.map((id, t) =>
    make("span", { role: "option", "aria-label": `${position(t)}: ${spoken(pass, id)}` }, token(pass, id)),
  );
  parts.strip.append(...items);

  /** Everything about the state but the map's picture. */
  function show() {
    const { query, key, direction } = look;
    items.forEach((item, t) => {
      const p = direction === "from" ? weight(query, t) : weight(t, query);
      item.classList.toggle("hidden", p === null);
      shade(item, p ?? 0);
    });
    const rows = (found) => found.map(([t, p]) => [make("span", {}, `${t} `, token(pass, ids[t])), p, t === query]);
    parts.panel.replaceChildren(
      heading("", `${query} `, token(pass, ids[query]), " looks at"),
      shares("Looks at", rows(strongest((t) => weight(query, t)))),
      heading("next", "and is looked at by"),
      shares("Is looked at by", rows(strongest((t) => weight(t, query)))),
    );
    const cell = 100 / nTokens;
    Object.assign(parts.row.style, { top: `${cell * query}%`, height: `${cell}%` });
    Object.assign(parts.cell.style, {
      top: `${cell * query}%`,
      left: `${cell * key}%`,
      width: `${cell}%`,
      height: `${cell}%`,
    });
    const p = weight(query, key);
    parts.value.replaceChildren(
      `query ${query} `,
      token(pass, ids[query]),
      ` to key ${key} `,
      token(pass, ids[key]),
      p === null ? ": hidden by the mask" : `: ${share(p)}`,
    );
  }

  const selectQuery = chooser(items, 1, "aria-selected", (t) => {
    look.query = t;
    look.key = strongestKey();
    show();
  });

  const thumbs = drawHeads(parts.heads, pass, (layer, head) => {
    Object.assign(look, { layer, head });
    parts.name.textContent = `Layer ${layer}, head ${head}`;
    parts.tap.textContent = `blocks.${layer}.pattern [${head}]`;
    const title = pass.titleOf(layer, head);
    parts.title.textContent = title
      ? `${title.kind} head: gives ${share(title.score)} of its attention ${KINDS[title.kind]}`
      : "of no known kind here";
    look.key = strongestKey();
    paintMap();
    show();
  });

  parts.titled.append(...listTitles(pass, (layer, head) => thumbs.select(layer * nHead + head)));

  listenToMap(parts.map, nTokens, look, (query, key) => {
    selectQuery(query); // if it is another, with the key that it looks at most
    look.key = key;
    show();
  });
  for (const input of parts.directions) {
    input.checked = input.value === look.direction;
    input.addEventListener("change", () => {
      look.direction = input.value;
      show();
    });
  }

  function paintAll() {
    paintMap();
    thumbs.canvases.forEach((canvas, i) => paintThumb(canvas, pass, Math.floor(i / nHead), i % nHead));
  }

  selectQuery(nTokens - 1);
  thumbs.select(Math.min(look.layer, nLayer - 1) * nHead + Math.min(look.head, nHead - 1));
  paintAll();
  return paintAll;
}

/** A line for each kind that has heads, with a button for each of its best heads, named layer.head. */
function listTitles({ titles }, choose) {
  return Object.keys(KINDS).flatMap((kind) => {
    const alike = titles.filter((title) => title.kind === kind).sort((a, b) => b.score - a.score);
    if (alike.length === 0) return [];
    const buttons = alike.slice(0, MOST_LISTED).map(({ layer, head, score }) => {
      const short = `${layer}.${head}`;
      const name = `${short}: layer ${layer}, head ${head}, ${kind}, ${share(score)}`;
      const button = make("button", { type: "button", "aria-label": name, title: name }, short);
      button.addEventListener("click", () => choose(layer, head));
      return button;
    });
    const more = alike.length - buttons.length;
    return [make("p", {}, `${kind}: `, ...buttons, ...(more > 0 ? [`and ${more} more`] : []))];
  });
}

/** A button with a picture for each head. */
function drawHeads(box, { nLayer, nHead, titleOf }, choose) {
  const thumb = nHead <= 8 ? 44 : 24;
  box.style.gridTemplateColumns = `auto repeat(${nHead}, ${thumb}px)`;
  box.style.setProperty("--thumb", `${thumb}px`);
  box.append(make("span"));
  for (let head = 0; head < nHead; head++) box.append(make("span", { class: "top" }, String(head)));
  const items = [];
  const canvases = [];
  for (let layer = 0; layer < nLayer; layer++) {
    box.append(make("span", {}, String(layer)));
    for (let head = 0; head < nHead; head++) {
      const kind = titleOf(layer, head)?.kind;
      const name = `Layer ${layer}, head ${head}${kind ? `: ${kind}` : ""}`;
      const item = make("button", { role: "radio", type: "button", "aria-label": name, title: name });
      const canvas = make("canvas", { "aria-hidden": "true" });
      item.append(canvas);
      items.push(item);
      canvases.push(canvas);
      box.append(item);
    }
  }
  const select = chooser(items, nHead, "aria-checked", (i) => choose(Math.floor(i / nHead), i % nHead));
  return { select, canvases };
}

/** The pointer and the arrow keys on the map choose a query and a key. */
function listenToMap(map, nTokens, look, choose) {
  const within = (i) => Math.min(Math.max(i, 0), nTokens - 1);
  const go = (query, key) => choose(within(query), within(key));

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
