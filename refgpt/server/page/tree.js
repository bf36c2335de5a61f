// A text as a tree of branches. Nodes are replaced and never changed, so that a state of the tree is a cheap copy,
// which undo and redo keep.

import { textOf } from "./tokens.js";

/**
 * @typedef {object} Node
 * @property {number} id
 * @property {number} parent  an id; 0 for a beginning
 * @property {"written"|"chosen"|"generated"} kind  by the reader, one token by the reader's choice, or by the model
 * @property {object[]} tokens  {id, text, logprob, top}; what is not known is null
 * @property {string|null} ended  why a generated node ended: "stop", "length", "stopped" by the reader, or "broken"
 * @property {number|null} seed
 * @property {string|null} adapter  the one that wrote its tokens, or computed their probabilities
 * @property {number|null} read  how many tokens were read, as one prompt, before its own were written
 */

export const ROOT = 0;
const MOST_UNDO = 100;

export class Tree {
  #nodes = new Map();
  #current = ROOT;
  #next = 1;
  #visited = new Map(); // of each node the child on the way to the leaf that was seen last
  #undo = [];
  #redo = [];

  get current() {
    return this.#current;
  }

  get isEmpty() {
    return this.#nodes.size === 0;
  }

  /** All nodes, each after its parent. */
  get nodes() {
    const found = this.children(ROOT);
    for (const node of found) found.push(...this.children(node.id)); // grows while it is read
    return found;
  }

  node(id) {
    return this.#nodes.get(id);
  }

  children(id) {
    return [...this.#nodes.values()].filter((node) => node.parent === id).sort((a, b) => a.id - b.id);
  }

  /** The leaves, in the order in which they were made. */
  get leaves() {
    const parents = new Set([...this.#nodes.values()].map((node) => node.parent));
    return [...this.#nodes.values()].filter((node) => !parents.has(node.id)).sort((a, b) => a.id - b.id);
  }

  /** The nodes from a beginning to a node. */
  path(id = this.#current) {
    const found = [];
    for (let node = this.#nodes.get(id); node; node = this.#nodes.get(node.parent)) found.unshift(node);
    return found;
  }

  tokens(id = this.#current) {
    return this.path(id).flatMap((node) => node.tokens);
  }

  text(id = this.#current) {
    return textOf(this.tokens(id));
  }

  // Changes. Each begins with `remember`, which is what undo goes back to.

  remember() {
    this.#undo.push(this.#state());
    if (this.#undo.length > MOST_UNDO) this.#undo.shift();
    this.#redo = [];
  }

  /** Hang a node below another and go there. */
  add(parent, { kind, tokens, ended = null, seed = null, read = null, adapter = null }) {
    const id = this.#next++;
    this.#nodes.set(id, { id, parent, kind, tokens, ended, seed, read, adapter });
    this.walk(id);
    return id;
  }

  replace(id, changes) {
    this.#nodes.set(id, { ...this.#nodes.get(id), ...changes });
  }

  /** Take a leaf away. */
  drop(id) {
    const { parent } = this.#nodes.get(id);
    this.#nodes.delete(id);
    this.#visited.delete(parent);
    if (this.#current === id) this.#current = parent;
  }

  /** Take away a branch: a node and all below it, and those above that led to it alone. */
  dropBranch(id) {
    const below = (one) => [...this.children(one).flatMap((child) => below(child.id)), one];
    let { parent } = this.#nodes.get(id);
    for (const one of below(id)) this.drop(one);
    while (parent !== ROOT && this.children(parent).length === 0) {
      const last = parent;
      ({ parent } = this.#nodes.get(last));
      this.drop(last);
    }
    this.walk(parent === ROOT ? (this.children(ROOT)[0]?.id ?? ROOT) : parent);
  }

  /** The node that ends before a token of a node, after cutting it in two if need be. */
  cut(id, place) {
    const node = this.#nodes.get(id);
    if (place === 0) return node.parent;
    if (place >= node.tokens.length) return id;
    const rest = this.#next++;
    for (const child of this.children(id)) this.replace(child.id, { parent: rest });
    this.#nodes.set(rest, { ...node, id: rest, parent: id, tokens: node.tokens.slice(place) });
    this.replace(id, { tokens: node.tokens.slice(0, place), ended: null });
    if (this.#visited.has(id)) this.#visited.set(rest, this.#visited.get(id));
    if (this.#current === id) this.#current = rest;
    return id;
  }

  /** Go to a node and stay there. */
  stay(id) {
    this.#current = id;
    for (let node = this.#nodes.get(id); node; node = this.#nodes.get(node.parent))
      this.#visited.set(node.parent, node.id);
  }

  /** Go to a node, and on to the leaf below it that was seen last. */
  walk(id) {
    let at = id;
    for (let children = this.children(at); children.length; children = this.children(at)) {
      const last = this.#visited.get(at);
      at = children.some((child) => child.id === last) ? last : children.at(-1).id;
    }
    this.stay(at);
  }

  clear() {
    this.#nodes = new Map();
    this.stay(ROOT);
  }

  /** Take over the nodes of a session. */
  load(nodes, current) {
    this.clear();
    for (const node of nodes) this.#nodes.set(node.id, node);
    this.#next = Math.max(0, ...nodes.map((node) => node.id)) + 1;
    this.stay(current);
  }

  // Undo and redo.

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  undo() {
    this.#redo.push(this.#state());
    this.#restore(this.#undo.pop());
  }

  redo() {
    this.#undo.push(this.#state());
    this.#restore(this.#redo.pop());
  }

  /** Forget the last change that came to nothing. */
  forget() {
    this.#restore(this.#undo.pop());
  }

  #state() {
    return { nodes: new Map(this.#nodes), current: this.#current, visited: new Map(this.#visited) };
  }

  #restore({ nodes, current, visited }) {
    this.#nodes = new Map(nodes);
    this.#visited = new Map(visited);
    this.#current = current;
  }
}
