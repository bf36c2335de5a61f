// Look inside: attention, logit lens and attribution of one token, asked for when it is chosen.

import { told } from "./adapters.js";
import { inspect, ServerError } from "./api.js";
import { label, percent, probability } from "./tokens.js";
import { drawAttention } from "./views/attention.js";
import { attributionTable, drawAttribution } from "./views/attribution.js";
import { byId, make, signed, token as named } from "./views/draw.js";
import { drawLens } from "./views/lens.js";
import { readPass } from "./views/pass.js";

const TABS = [
  {
    id: "attention",
    name: "Attention",
    caption:
      "Where each head looked from the position that gave this token. Choose a head by its picture: layers run down, " +
      "heads across. Then point at a token, or at the map, in which a row is a query and a column a key.",
  },
  {
    id: "lens",
    name: "Logit lens",
    caption:
      "What the model would have answered if it had ended after a block: its final LayerNorm and head on the " +
      "residual stream. A bar under a cell marks the token that does come next. The last column led to this token.",
  },
  {
    id: "attribution",
    name: "Attribution",
    caption:
      "What the embedding, each head and each MLP added directly to the logit of this token, with the final " +
      "LayerNorm's scale as it was. Plain bars are heads, in their order; striped ones are MLPs; those below the " +
      "line spoke against it.",
  },
];

export class Inside {
  #root = byId("inside");
  #chosen = "attention";
  #head = null; // stays when another token is chosen
  #asking = null;
  #paintAgain = null;
  #ask;
  #onClose;

  constructor(onClose) {
    this.#onClose = onClose;
  }

  get isOpen() {
    return !this.#root.hidden;
  }

  /** Pictures are painted, so they do not follow light and dark by themselves. */
  repaint() {
    this.#paintAgain?.();
  }

  close() {
    this.#asking?.abort();
    this.#root.hidden = true;
    this.#root.replaceChildren();
    this.#paintAgain = null;
    this.#onClose();
  }

  /**
   * @param {number[]} ids  all tokens before it
   * @param {object} token  {id, text, logprob}
   * @param {number} prefixLen  how many of the first tokens see each other
   * @param {string|null} adapter  the one that wrote it
   */
  show(ids, token, prefixLen, adapter) {
    this.#asking?.abort();
    this.#asking = new AbortController();
    this.#paintAgain = null;
    this.#draw(token, ids, prefixLen, adapter);
    this.#root.hidden = false;
    this.#open(this.#chosen);
    this.#root.scrollIntoView({ block: "start" });
    byId(`tab-${this.#chosen}`).focus({ preventScroll: true });
  }

  /** Open a view. What it shows is asked for when it is first looked at. */
  async #open(chosen) {
    this.#chosen = chosen;
    for (const { id } of TABS) {
      byId(`tab-${id}`).setAttribute("aria-selected", String(id === chosen));
      byId(`tab-${id}`).tabIndex = id === chosen ? 0 : -1;
      byId(`view-${id}`).hidden = id !== chosen;
    }
    const view = byId(`view-${chosen}`).querySelector(".view");
    if (view.childElementCount > 0) return;
    view.append(make("p", { class: "wait" }, "Looking inside…"));
    try {
      const pass = await this.#ask(chosen);
      view.replaceChildren();
      this.#views[chosen](view, pass);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ServerError)) throw error;
      view.replaceChildren(make("p", { class: "problem" }, error.message));
    }
  }

  /** A frame with a tab for each view. */
  #draw(token, ids, prefixLen, adapter) {
    const { signal } = this.#asking;
    const request = { prompt: ids, token: token.id, prefix_len: prefixLen };
    if (adapter !== null) request.model = adapter;
    this.#ask = async (part) => readPass(await inspect({ ...request, what: [part] }, signal), token.id);
    const p = probability(token);
    const close = make("button", { type: "button", class: "plain small", id: "inside-close" });
    close.append(make("i", { class: "icon icon-close" }), "Close");
    close.addEventListener("click", () => this.close());
    const title = make("h2", { id: "inside-title" }, "Inside: how the model came to ", label(token));
    const facts = [`after ${ids.length} token${ids.length === 1 ? "" : "s"}`];
    if (p !== null) facts.push(`probability ${percent(p)}`);
    if (told(adapter)) facts.push(told(adapter));
    const head = make(
      "div",
      { class: "inside-head" },
      make("div", {}, title, make("p", { class: "facts" }, facts.join("; "))),
      close,
    );
    this.#root.replaceChildren(head, ...this.#tabs());
  }

  #tabs() {
    const bar = make("div", { class: "tabs", role: "tablist", "aria-label": "Views" });
    const panels = TABS.map(({ id, name, caption }) => {
      const tab = make("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `view-${id}` }, name);
      tab.addEventListener("click", () => this.#open(id));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const at = TABS.findIndex((one) => one.id === id);
        const next = TABS.at((at + step) % TABS.length).id;
        this.#open(next);
        byId(`tab-${next}`).focus();
      });
      bar.append(tab);
      const content = make("div", { class: "view" });
      return make(
        "div",
        { class: "view-panel", role: "tabpanel", id: `view-${id}`, "aria-labelledby": `tab-${id}` },
        make("p", { class: "caption" }, caption),
        content,
      );
    });
    return [bar, ...panels];
  }

  #views = {
    attention: (view, pass) => {
      view.classList.add("bench");
      this.#head ??= { ...pass.opening };
      this.#paintAgain = drawAttention(view, pass, this.#head);
    },
    lens: (view, pass) => {
      const [box, panel] = beside(view);
      drawLens(box, panel, pass);
    },
    attribution: (view, pass) => {
      const { token: id, total, logit } = pass.attribution;
      const sum = make("p", { class: "sum" }, "The terms of ", named(pass, id));
      sum.append(` sum to ${signed(total)}; the engine computed ${signed(logit)}.`);
      const [box, panel] = beside(view, sum);
      drawAttribution(box, panel, pass);
      const scroll = make("div", {
        class: "scroll",
        tabindex: "0",
        role: "region",
        "aria-label": "Terms of the logit",
      });
      scroll.append(attributionTable(pass));
      view.append(make("details", {}, make("summary", {}, "The terms as a table"), scroll));
    },
  };
}

/** A box that scrolls, and a panel beside it. */
function beside(view, ...before) {
  const box = make("div", { class: "scroll" });
  const panel = make("div", { class: "panel", "aria-live": "polite" });
  view.append(...before, make("div", { class: "split wide" }, box, panel));
  return [box, panel];
}
