// What is written: the reader's words and the model's, from the end of the text or from a place in it.

import * as adapters from "./adapters.js";
import { tokenize } from "./api.js";
import { joined } from "./composer.js";
import { calm, complain, say } from "./messages.js";
import { advanceSeed } from "./settings.js";
import { showFigures } from "./theme.js";
import { audible, textOf } from "./tokens.js";
import { ROOT } from "./tree.js";
import { byId } from "./views/draw.js";
import { Writer } from "./writer.js";

const composer = byId("composer");

export class Writing {
  #tree;
  #view;
  #writer;
  #context = null; // the model's
  #live = null; // the node that is being written
  #starting = false; // whether the reader's words are being sent
  #wordsAsTheyAre = false; // whether no blank may be put before them
  #takeBack = { always: false, words: "" }; // what to do if no token comes
  #follows = false; // whether the page is scrolled with what is written, until the reader scrolls

  /**
   * @param {Tree} tree
   * @param {View} view
   */
  constructor(tree, view) {
    this.#tree = tree;
    this.#view = view;
    this.#writer = new Writer(tree, {
      begin: (node, figures) => this.#begin(node, figures),
      token: (token, figures) => this.#addToken(token, figures),
      scored: () => view.drawPaper(),
      nothing: (failed) => this.#cameToNothing(failed),
      end: () => this.#end(),
    });
    for (const kind of ["wheel", "touchmove"])
      addEventListener(kind, () => (this.#follows = false), { passive: true });
  }

  /** What the server tells of its model: see `model` of api.js. */
  set model(found) {
    this.#writer.model = found;
    this.#context = found.context;
  }

  get isRunning() {
    return this.#writer.isRunning;
  }

  /** See `Writer`. */
  stop() {
    return this.#writer.stop();
  }

  /** The tokens of a node, also of one that is being written. */
  tokensAt(id) {
    return this.#live?.id === id ? this.#live.tokens : this.#tree.node(id).tokens;
  }

  #begin(node, figures) {
    this.#live = { id: node.id, tokens: [] };
    this.#follows = true;
    this.#view.draw();
    showFigures(figures, this.#context);
    say("Writing");
  }

  #addToken(token, figures) {
    this.#live.tokens.push(token);
    this.#view.append(token);
    showFigures(figures, this.#context);
    // The line below the text field, which itself stays at the foot of the window.
    if (this.#follows) byId("figures").scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  #end() {
    const tree = this.#tree;
    const node = this.#live && tree.node(this.#live.id);
    this.#live = null;
    if (node) this.#view.drawRest();
    else this.#view.draw();
    const why = { stop: "to its end", stopped: "until it was stopped", broken: "until the connection ended" };
    if (node)
      say(`${node.tokens.length} tokens written ${why[node.ended] ?? ""}: ${audible(tree.text(node.id).slice(-2000))}`);
  }

  /** Write on from a node; whatever goes wrong is told. */
  async #write(parent) {
    calm();
    this.#view.endComparison();
    this.#tree.stay(parent);
    try {
      // With a prefix mask, the rows of a prompt have already seen the tokens that they would give a probability to.
      const adapter = adapters.chosen();
      const scores = byId("score-written").checked && adapters.maskWith(adapter) !== "prefix";
      await this.#writer.write(parent, scores, adapter);
    } catch (error) {
      complain(error);
    }
  }

  /** No token came: take back what was done for it, and give the reader's words back. */
  #cameToNothing(failed) {
    if (failed || this.#takeBack.always) this.#tree.forget();
    if (failed && this.#takeBack.words) composer.value = this.#takeBack.words;
  }

  /** The reader's own words, then the model's. */
  async goOn() {
    const tree = this.#tree;
    if (this.isRunning || this.#starting) return;
    const typed = composer.value || (tree.current === ROOT ? composer.placeholder : "");
    const parent = tree.current;
    const words = this.#wordsAsTheyAre ? typed : joined(tree.text(parent), typed);
    const tokens = typed ? await this.#tokensOf(words) : [];
    if (tokens === null) return;
    this.#takeBack = { always: false, words: composer.value };
    this.#wordsAsTheyAre = false;
    tree.remember();
    const from = tokens.length ? tree.add(parent, { kind: "written", tokens, adapter: adapters.chosen() }) : parent;
    composer.value = "";
    await this.#write(from);
  }

  /** The tokens of the reader's words; null if the server does not tell. */
  async #tokensOf(text) {
    calm();
    this.#starting = true;
    try {
      return await tokenize(text);
    } catch (error) {
      complain(error);
      return null;
    } finally {
      this.#starting = false;
    }
  }

  /** Write the last part anew, beside what is there. */
  async retry() {
    const tree = this.#tree;
    if (this.isRunning || tree.current === ROOT) return;
    const last = tree.path().findLast((node) => node.kind === "generated");
    this.#takeBack = { always: true, words: "" };
    tree.remember();
    if (last) advanceSeed();
    await this.#write(last ? last.parent : tree.current);
  }

  /** Go another way at a token: with another one in its place, or anew. */
  async branchAt(node, place, token) {
    const tree = this.#tree;
    await this.stop();
    this.#takeBack = { always: true, words: "" };
    tree.remember();
    const { read, adapter } = tree.node(node);
    const parent = tree.cut(node, place);
    const from = token ? tree.add(parent, { kind: "chosen", tokens: [token], read, adapter }) : parent;
    if (!token) advanceSeed();
    await this.#write(from);
    // The keyboard's focus was on the window of alternatives, which is closed.
    if (document.activeElement === document.body) this.#view.paper.elementOf(from, 0)?.focus({ preventScroll: true });
  }

  /** Leave a text before a token, and write on by hand. */
  async writeAt(node, place) {
    const tree = this.#tree;
    await this.stop();
    const blank = tree.node(node).tokens[place].text.startsWith(" ") ? " " : "";
    tree.remember();
    tree.stay(tree.cut(node, place));
    this.#writeByHand(blank);
  }

  /** Take the reader's own words back into the text field; what becomes of them is a branch. */
  async edit(node) {
    const tree = this.#tree;
    await this.stop();
    const { parent, tokens } = tree.node(node);
    tree.remember();
    tree.stay(parent);
    this.#writeByHand(textOf(tokens));
  }

  /** Give the reader words to change, exactly as they will be read. */
  #writeByHand(words) {
    composer.value = words;
    this.#wordsAsTheyAre = true;
    this.#view.draw();
    composer.focus();
  }
}
