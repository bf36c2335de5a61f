// What is shown: the paper, or branches side by side, and everything beside them that follows from the tree.

import { Alternatives } from "./alternatives.js";
import { drawBranches, drawComparison, latestBranches } from "./branches.js";
import { fitComposer } from "./composer.js";
import { Paper } from "./paper.js";
import { addBeat, drawPulse } from "./pulse.js";
import { ROOT } from "./tree.js";
import { byId } from "./views/draw.js";

export class View {
  #tree;
  #on;
  #alternatives;
  #compared = new Set(); // the branches that are chosen for a comparison
  #comparing = false;

  /**
   * @param {Tree} tree
   * @param {{describe, turn, walk, drop, isRunning, drawn}} on  describe: see `Alternatives`; turn, walk, drop: what
   *     the reader does with branches; isRunning: whether a text is being written; drawn: called when all is drawn
   */
  constructor(tree, on) {
    this.#tree = tree;
    this.#on = on;
    this.#alternatives = new Alternatives(on.describe);
    this.paper = new Paper(byId("paper"), {
      point: (element) => this.#alternatives.point(element),
      leave: () => this.#alternatives.leave(),
      pin: (element, withFocus) => this.#alternatives.pin(element, withFocus),
      turn: on.turn,
    });
  }

  /** Draw everything that follows from the tree. */
  draw() {
    this.drawPaper();
    this.drawRest();
  }

  drawPaper() {
    this.#alternatives.close();
    this.paper.draw(this.#tree);
    drawPulse(this.#tree.tokens());
  }

  /** All but the paper, which grows by itself while a text is written. */
  drawRest() {
    const tree = this.#tree;
    const empty = tree.current === ROOT;
    this.#drawBranches();
    byId("start").hidden = byId("presets").hidden = !empty;
    byId("legend").hidden = empty;
    byId("sheet").classList.toggle("begins", empty);
    byId("go-name").textContent = empty ? "Begin" : "Go on";
    fitComposer();
    byId("composer").placeholder = empty ? "Once upon a time" : "Add words, or let it go on";
    this.#drawButtons();
    this.#on.drawn();
  }

  #drawBranches() {
    const [tree, compared] = [this.#tree, this.#compared];
    for (const id of compared) if (!tree.leaves.some((leaf) => leaf.id === id)) compared.delete(id);
    this.#comparing &&= compared.size > 0;
    const does = { walk: this.#on.walk, compare: (id, chosen) => this.#compare(id, chosen), drop: this.#on.drop };
    drawBranches(byId("branches"), tree, this.#comparing ? compared : null, does);
    if (this.#comparing) drawComparison(byId("comparison"), tree, [...compared], this.#on.walk);
    byId("comparison").hidden = !this.#comparing;
    byId("paper").hidden = this.#comparing;
    byId("compare").setAttribute("aria-pressed", String(this.#comparing));
    byId("compare").hidden = tree.leaves.length < 2;
    byId("branches-empty").hidden = !tree.isEmpty;
  }

  #drawButtons() {
    const tree = this.#tree;
    const running = this.#on.isRunning();
    byId("go").hidden = running;
    byId("stop").hidden = !running;
    byId("retry").disabled = running || tree.current === ROOT;
    byId("undo").disabled = running || !tree.canUndo;
    byId("redo").disabled = running || !tree.canRedo;
    byId("copy").disabled = byId("save").disabled = tree.isEmpty;
    byId("copy").hidden = !navigator.clipboard; // browsers have none for pages over plain HTTP from elsewhere
    byId("sheet").classList.toggle("writing", running);
  }

  /** Add a token that was just written to the paper. */
  append(token) {
    this.paper.append(token);
    addBeat(token);
  }

  #compare(id, chosen) {
    if (chosen) this.#compared.add(id);
    else this.#compared.delete(id);
    this.#comparing = this.#compared.size > 0;
    this.draw();
  }

  /** Show branches side by side, the latest if fewer than two are chosen; or the paper again. */
  toggleComparison() {
    this.#comparing = !this.#comparing;
    if (this.#comparing && this.#compared.size < 2) {
      this.#compared.clear();
      latestBranches(this.#tree).forEach((id) => this.#compared.add(id));
    }
    this.draw();
  }

  /** Show the paper, when it is drawn next. */
  endComparison() {
    this.#comparing = false;
  }
}
