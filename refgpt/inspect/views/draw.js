// How things are written and shaded. Text is only ever written as text, so that no token can become markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text, never markup. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A token for the eye: text, and in its midst marks for what cannot be seen. */
export function token(pass, id) {
  const [, ...parts] = pass.tokens[id];
  return marked(parts);
}

/** Text and marks by turns, as `label` (refgpt/inspect/labels.py) gives them. */
export function marked(parts) {
  const shown = make("bdi", { class: "token" });
  parts.forEach((part, i) => {
    if (part === "") return;
    if (i % 2 === 0) shown.append(part);
    else shown.append(make("i", { class: part.length > 1 ? "long" : "" }, part));
  });
  return shown;
}

/** The same as words, for those who listen. */
export const spoken = (pass, id) => pass.tokens[id].slice(1).join("").replaceAll("␣", "space ");

/** A share between 0 and 1, in four decimals or, where those would say nothing, in two digits. */
export function share(p) {
  if (p === 0) return "0";
  return p >= 0.0001 ? p.toFixed(4) : p.toExponential(1);
}

/** Any number: four decimals and a true minus. */
export const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(4)}`;

/** How dark a share is shaded. The root, so that a hundredth can still be told from nothing. */
export const shadeOf = (p) => Math.sqrt(Math.min(1, Math.max(0, p)));

export function shade(element, p) {
  element.classList.add("shade");
  element.style.setProperty("--shade", shadeOf(p));
}

/** A table of shares with a meter each: [what, share, is it the one that is meant]. */
export function shares(label, rows) {
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
export function table(head, rows) {
  const row = (cells, kind) => make("tr", {}, ...cells.map((cell) => make(kind, {}, cell)));
  const body = make("tbody", {}, ...rows.map((cells) => row(cells, "td")));
  return make("table", { class: "plain-table" }, ...(head.length ? [make("thead", {}, row(head, "th"))] : []), body);
}

/** A table of cells that can be chosen, with a title for each row: the element, and its cells one row after another. */
export function grid(name, label, head, rows) {
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

export const heading = (name, ...children) => make("h3", name ? { class: name } : {}, ...children);
export const line = (...children) => make("p", {}, ...children);
export const position = (t) => `position ${t}`;
