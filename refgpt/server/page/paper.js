// The text as it is read: every token in its colour, in the order of the current path.

import { inked, isEnd, percent, Pieces, probability, spoken, stepOf } from "./tokens.js";
import { make } from "./views/draw.js";

const KINDS = { written: "your words", chosen: "your choice", generated: "written by the model" };

export class Paper {
  #root;
  #on;
  #pieces = new Pieces();
  #tokens = []; // the elements of the tokens, in order
  #focused = null;
  #pointed = null; // the token under the mouse

  /**
   * @param {HTMLElement} root
   * @param {{point, leave, pin, turn}} on  what happens to a token (its element) or at a fork
   */
  constructor(root, on) {
    this.#root = root;
    this.#on = on;
    // Moved, not entered: a text that grows, or is scrolled, brings tokens under a mouse that rests.
    root.addEventListener("pointermove", (event) => {
      const token = event.target.closest(".t");
      if (event.pointerType !== "mouse" || token === this.#pointed) return;
      this.#pointed = token;
      if (token) on.point(token);
    });
    root.addEventListener("pointerout", (event) => {
      if (event.pointerType !== "mouse" || event.relatedTarget?.closest?.(".t") === this.#pointed) return;
      this.#pointed = null;
      on.leave();
    });
    root.addEventListener("focusin", (event) => {
      const token = event.target.closest(".t");
      if (!token) return;
      this.#rove(token);
      if (token.matches(":focus-visible")) on.point(token);
    });
    root.addEventListener("click", (event) => {
      const token = event.target.closest(".t");
      if (token) on.pin(token);
    });
    root.addEventListener("keydown", (event) => this.#key(event));
  }

  /** The place of a token in the tree. */
  static placeOf(element) {
    return { node: Number(element.dataset.node), place: Number(element.dataset.place) };
  }

  elementOf(node, place) {
    return this.#tokens.find((one) => one.dataset.node === String(node) && one.dataset.place === String(place));
  }

  get last() {
    return this.#tokens.at(-1);
  }

  /** Draw the current path of a tree. */
  draw(tree) {
    this.#root.replaceChildren();
    this.#tokens = [];
    this.#pieces = new Pieces();
    this.#focused = null;
    for (const node of tree.path()) {
      const siblings = tree.children(node.parent);
      if (siblings.length > 1) this.#root.append(this.#fork(siblings, node));
      this.begin(node);
      node.tokens.forEach((token) => this.append(token));
    }
    if (this.last) this.#rove(this.last);
  }

  /** Begin a node: the tokens that follow are its own. */
  begin({ id, kind }) {
    this.#root.append(make("span", { class: `run ${kind}`, "data-node": id }));
  }

  /** Add a token to the node that was begun last. */
  append(token) {
    const run = this.#root.lastElementChild;
    const place = run.childElementCount;
    const shown = this.#pieces.push(token);
    const p = probability(token);
    const element = make("span", {
      class: "t",
      role: "button",
      tabindex: "-1",
      "aria-haspopup": "dialog",
      "aria-label": p === null ? spoken(token) : `${spoken(token)}, ${percent(p)}`,
      "data-node": run.dataset.node,
      "data-place": place,
    });
    const step = stepOf(token);
    if (step !== null) element.classList.add(`h${step}`);
    if (isEnd(token)) element.append(make("i", { class: "ink long" }, "end of text"));
    else if (shown === null) element.append(make("i", { class: "ink" }, "·"));
    else element.append(...inked(shown));
    run.append(element);
    this.#tokens.push(element);
    if (this.#focused === null) this.#rove(element);
    return element;
  }

  /** The name of a token's writer. */
  static writerOf = ({ kind, adapter }) =>
    kind === "generated" && adapter !== null ? `written with ${adapter}` : KINDS[kind];

  #rove(token) {
    if (this.#focused) this.#focused.tabIndex = -1;
    this.#focused = token;
    token.tabIndex = 0;
  }

  /** The two buttons at a fork. */
  #fork(siblings, node) {
    const place = siblings.indexOf(node);
    const turn = (step, name, icon) => {
      const button = make("button", { type: "button", class: "turn", "aria-label": name });
      button.append(make("i", { class: `icon icon-${icon}` }));
      button.addEventListener("click", () => this.#on.turn(siblings.at((place + step) % siblings.length).id, step));
      return button;
    };
    return make(
      "span",
      { class: "fork", role: "group", "aria-label": `Branch ${place + 1} of ${siblings.length}`, "data-node": node.id },
      turn(-1, "Previous branch", "previous"),
      make("span", { class: "which" }, `${place + 1}/${siblings.length}`),
      turn(1, "Next branch", "next"),
    );
  }

  /** Arrow keys go from token to token and from line to line. */
  #key(event) {
    const token = event.target.closest(".t");
    if (!token || event.ctrlKey || event.altKey || event.metaKey) return;
    const i = this.#tokens.indexOf(token);
    const goals = {
      ArrowLeft: () => this.#tokens[i - 1],
      ArrowRight: () => this.#tokens[i + 1],
      ArrowUp: () => this.#lineFrom(i, -1),
      ArrowDown: () => this.#lineFrom(i, 1),
      Home: () => this.#tokens[0],
      End: () => this.last,
    };
    if (event.key in goals) goals[event.key]()?.focus();
    else if (event.key === "Enter" || event.key === " ") this.#on.pin(token, true);
    else return;
    event.preventDefault();
  }

  /** The token above or below. */
  #lineFrom(i, step) {
    const from = this.#tokens[i].getClientRects()[0];
    let best;
    let line = null;
    for (let at = i + step; this.#tokens[at]; at += step) {
      const box = this.#tokens[at].getClientRects()[0];
      if (Math.abs(box.top - from.top) < box.height / 2) continue;
      if (line !== null && Math.abs(box.top - line) > box.height / 2) break;
      line = box.top;
      const off = Math.abs(box.left - from.left);
      if (!best || off < best.off) best = { off, token: this.#tokens[at] };
    }
    return best?.token;
  }
}
