// What else was likely in the place of a token: a small window beside it, from which the text can go another way.

import { isEnd, label, percent, probability, spoken } from "./tokens.js";
import { byId, make } from "./views/draw.js";

const DELAY = 90; // milliseconds before it opens, so that it does not flicker under a mouse that passes by
const GRACE = 260; // before it closes, so that the mouse can go there
const GAP = 6;

export class Alternatives {
  #box = byId("alternatives");
  #timer = 0;
  #element = null;
  #pinned = false;
  #dismissed = null; // the token whose window the reader has closed; it stays closed until another is pointed at
  #describe;

  /** @param {(element: HTMLElement) => object} describe  what is to be shown about the element of a token */
  constructor(describe) {
    this.#describe = describe;
    this.#box.addEventListener("pointerenter", () => clearTimeout(this.#timer));
    this.#box.addEventListener("pointerleave", () => this.leave());
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("pointerdown", (event) => {
      if (!this.#box.contains(event.target) && !event.target.closest(".t")) this.close();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.#box.hidden) return;
      this.#dismissed = this.#element;
      this.close(true);
    });
    addEventListener("resize", () => this.#place());
  }

  /** The mouse, or the focus, is on a token. */
  point(element) {
    if (this.#pinned || element === this.#dismissed) return;
    this.#dismissed = null;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(element), this.#box.hidden ? DELAY : 0);
  }

  /** The mouse has left it. */
  leave() {
    clearTimeout(this.#timer);
    if (!this.#pinned) this.#timer = setTimeout(() => this.close(), GRACE);
  }

  /** A token was clicked or chosen by key: the window stays. */
  pin(element, withFocus = false) {
    clearTimeout(this.#timer);
    this.#dismissed = null;
    this.#open(element);
    this.#pinned = true;
    if (withFocus) this.#box.querySelector("button:not([disabled])")?.focus();
  }

  close(backToToken = false) {
    clearTimeout(this.#timer);
    const inside = this.#box.contains(document.activeElement);
    this.#box.hidden = true;
    this.#pinned = false;
    this.#element?.classList.remove("open");
    if (backToToken && inside) this.#element?.focus();
    this.#element = null;
  }

  #open(element) {
    if (!element.isConnected) return;
    this.close();
    this.#element = element;
    element.classList.add("open");
    this.#draw(this.#describe(element));
    this.#box.hidden = false;
    this.#place();
  }

  #draw({ token, writer, actions, branch }) {
    const p = probability(token);
    const title = make("h2", { id: "alternatives-title" }, make("span", { class: "unseen" }, "Token "), label(token));
    const facts = make(
      "p",
      { class: "facts" },
      p === null ? "no probability was asked for" : percent(p),
      ` · ${writer}`,
    );
    const list = make("ul", { class: "choices", "aria-label": "What else was likely here" });
    for (const one of token.top ?? []) list.append(this.#choice(one, one.text === token.text, branch));
    const row = make("div", { class: "row" });
    for (const { name, icon, run } of actions) {
      const button = make(
        "button",
        { type: "button", class: "plain small" },
        make("i", { class: `icon icon-${icon}` }),
        name,
      );
      button.addEventListener("click", () => {
        this.close();
        run();
      });
      row.append(button);
    }
    this.#box.replaceChildren(title, facts, ...(list.childElementCount ? [list] : []), row);
  }

  #choice(one, here, branch) {
    const p = Math.exp(one.logprob);
    const shown = label(one);
    shown.setAttribute("aria-hidden", "true");
    const button = make("button", { type: "button", class: "choice-row" }, shown);
    const meter = make("span", { class: "meter-box" }, make("span", { class: "meter" }));
    meter.firstChild.style.setProperty("--share", p);
    button.append(make("span", { class: "unseen" }, `${spoken(one)},`), meter);
    button.append(make("span", { class: "number" }, percent(p)));
    button.append(make("span", { class: "unseen" }, here ? "is in the text" : "go on from it"));
    if (here || isEnd(one) || !branch) {
      button.disabled = true;
      button.classList.toggle("here", here);
    } else {
      button.addEventListener("click", () => {
        this.close();
        branch(one);
      });
    }
    return make("li", {}, button);
  }

  /** Below the token, or above it where there is no room; a narrow screen has it at its foot, see the style. */
  #place() {
    if (this.#box.hidden || !this.#element) return;
    const token = [...this.#element.getClientRects()].at(-1);
    const { offsetWidth: width, offsetHeight: height } = this.#box;
    const left = Math.max(8, Math.min(token.left - 12, document.documentElement.clientWidth - width - 8));
    const below = token.bottom + GAP + height <= innerHeight || token.top < height + GAP;
    const top = below ? token.bottom + GAP : token.top - GAP - height;
    Object.assign(this.#box.style, { left: `${left + scrollX}px`, top: `${top + scrollY}px` });
  }

  #key(event) {
    const buttons = [...this.#box.querySelectorAll("button:not([disabled])")];
    const i = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown") buttons[Math.min(i + 1, buttons.length - 1)]?.focus();
    else if (event.key === "ArrowUp") buttons[Math.max(i - 1, 0)]?.focus();
    else if (event.key === "Tab" && (event.shiftKey ? i === 0 : i === buttons.length - 1)) this.close(true);
    else return;
    event.preventDefault();
  }
}
