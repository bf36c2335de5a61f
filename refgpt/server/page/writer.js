// Writing: one request at a time, whose tokens go into the tree as they come.

import { complete } from "./api.js";
import { nextSeed, readSettings, requestOf } from "./settings.js";
import { isEnd } from "./tokens.js";

const N_ALTERNATIVES = 8;

/** The prompt that tokens make: their ids, or their text where an id is not known. */
function promptOf(tokens, text) {
  const ids = tokens.map((token) => token.id);
  return ids.length === 0 || ids.includes(null) ? text : ids;
}

export class Writer {
  #tree;
  #model = { context: null, mostLogprobs: Infinity };
  #running = null;
  #on;

  /**
   * @param {Tree} tree
   * @param {{begin, token, scored, nothing, end}} on  called as things happen
   */
  constructor(tree, on) {
    this.#tree = tree;
    this.#on = on;
  }

  /** What the server tells of its model: see `model` of api.js. */
  set model(found) {
    this.#model = found;
  }

  get isRunning() {
    return this.#running !== null;
  }

  /** Stop, and wait until everything that has come is in the tree. */
  async stop() {
    this.#running?.abort.abort();
    await this.#running?.done;
  }

  /**
   * Go on from a node.
   *
   * @param {number} parent
   * @param {boolean} score  whether written tokens before it get their probabilities too
   * @param {string|null} adapter  the one to write with
   */
  async write(parent, score, adapter) {
    const abort = new AbortController();
    let finished;
    this.#running = { abort, done: new Promise((resolve) => (finished = resolve)) };
    try {
      await this.#write(parent, score, adapter, abort.signal);
    } finally {
      this.#running = null;
      finished();
      this.#on.end();
    }
  }

  async #write(parent, score, adapter, signal) {
    const tree = this.#tree;
    const settings = readSettings();
    const seed = nextSeed(settings);
    const before = tree.tokens(parent);
    const goesOnAfterEnd = before.length > 0 && isEnd(before.at(-1));
    const prompt = promptOf(
      before.filter((token) => !isEnd(token)),
      tree.text(parent),
    );
    const asIds = Array.isArray(prompt);
    const echo =
      score && asIds && !goesOnAfterEnd && before.some((token) => token.logprob === null && token !== before[0]);
    const { context, mostLogprobs } = this.#model;
    const room = context && asIds ? context - prompt.length : Infinity;
    const request = {
      ...requestOf(settings),
      prompt,
      max_tokens: Math.max(1, Math.min(settings.max_tokens, room)), // without room the server says so
      seed,
      logprobs: Math.min(N_ALTERNATIVES, mostLogprobs),
      echo,
      stream_options: { include_usage: true },
      ...(goesOnAfterEnd ? { ignore_eos: true } : {}),
      ...(adapter === null ? {} : { model: adapter }),
    };
    const id = tree.add(parent, { kind: "generated", tokens: [], seed, read: before.length, adapter });
    const figures = { began: performance.now(), first: null, last: null, written: 0, read: before.length };
    this.#on.begin(tree.node(id), figures);
    const tokens = [];
    let left = echo ? prompt.length : 0; // of the prompt's own tokens, which come first
    const scored = [];
    let ended = null;
    let failure = null;
    try {
      for await (const piece of complete(request, signal)) {
        for (const token of piece.tokens) {
          if (left > 0) {
            scored.push(token);
            if (--left === 0) this.#score(parent, scored, adapter);
            continue;
          }
          tokens.push(token);
          figures.last = performance.now();
          figures.first ??= figures.last;
          figures.written = tokens.length;
          this.#on.token(token, figures);
        }
        ended = piece.finish ?? ended;
        if (piece.usage) figures.read = piece.usage.prompt_tokens;
      }
    } catch (error) {
      ended = error.name === "AbortError" ? "stopped" : "broken";
      if (ended === "broken") failure = error;
    }
    if (tokens.length === 0) {
      tree.drop(id);
      this.#on.nothing(failure !== null);
    } else tree.replace(id, { tokens: Object.freeze(tokens), ended });
    if (failure) throw failure;
  }

  /** Give the tokens before a node their probabilities. */
  #score(parent, scored, adapter) {
    let place = 0;
    for (const node of this.#tree.path(parent)) {
      const from = place;
      place += node.tokens.length;
      if (node.kind === "written") this.#tree.replace(node.id, { tokens: scored.slice(from, place), adapter });
    }
    this.#on.scored();
  }
}
