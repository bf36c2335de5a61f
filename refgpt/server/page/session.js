// A session as a file: JSON that is checked, field by field, before anything of it is used.

const FORMAT = "refgpt session";
const VERSION = 1;
const MOST_BYTES = 32_000_000;
const MOST_NODES = 5000;
const MOST_TOKENS = 200_000;
const MOST_TOP = 50;
const MOST_TEXT = 100_000;
const KINDS = ["written", "chosen", "generated"];
const ENDS = ["stop", "length", "stopped", "broken", null];

export class SessionError extends Error {}

/** The file of a tree, its model, the chosen adapter and the settings. */
export function toFile(tree, model, adapter, settings) {
  const nodes = tree.nodes;
  const places = new Map(nodes.map((node, i) => [node.id, i]));
  return JSON.stringify({
    format: FORMAT,
    version: VERSION,
    model,
    adapter,
    settings,
    current: places.get(tree.current) ?? null,
    nodes: nodes.map(({ parent, kind, tokens, ended, seed, read, adapter }) => ({
      parent: places.get(parent) ?? null,
      kind,
      ended,
      seed,
      read,
      adapter,
      tokens: tokens.map(({ id, text, logprob, top }) => [
        id,
        text,
        logprob,
        top.map((one) => [one.id, one.text, one.logprob]),
      ]),
    })),
  });
}

/**
 * What a file holds.
 *
 * @param {string} text
 * @returns {{model: string, adapter: string|null, settings: object, nodes: object[], current: number}}
 * @throws {SessionError}
 */
export function fromFile(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new SessionError("This file is not a session: it is not JSON.");
  }
  if (file?.format !== FORMAT) throw new SessionError("This file is not a session of this page.");
  check(file.version === VERSION, "version", `must be ${VERSION}; the file comes from another version of refgpt`);
  check(isText(file.model), "model", "must be a text");
  check(isAdapter(file.adapter), "adapter", "must be a name or null");
  check(isObject(file.settings), "settings", "must be an object");
  check(
    Array.isArray(file.nodes) && file.nodes.length <= MOST_NODES,
    "nodes",
    `must be a list of at most ${MOST_NODES}`,
  );
  let left = MOST_TOKENS;
  const nodes = file.nodes.map((node, i) => {
    const read = nodeOf(node, i);
    left -= read.tokens.length;
    check(left >= 0, "nodes", `must have at most ${MOST_TOKENS} tokens together`);
    return read;
  });
  const { current } = file;
  check(current === null ? nodes.length === 0 : isPlace(current, nodes.length), "current", "must be one of the nodes");
  const { model, settings, adapter = null } = file;
  return { model, adapter, settings, nodes, current: current === null ? 0 : current + 1 };
}

/** A node; its id is its place, from 1. */
function nodeOf(node, i) {
  const where = `nodes[${i}]`;
  check(isObject(node), where, "must be an object");
  const { parent, kind, ended, seed, read, adapter, tokens } = node;
  check(parent === null || isPlace(parent, i), `${where}.parent`, "must be an earlier node or null");
  check(KINDS.includes(kind), `${where}.kind`, `must be one of ${KINDS.join(", ")}`);
  check(ENDS.includes(ended), `${where}.ended`, "must be a known reason or null");
  check(seed === null || isPlace(seed, Infinity), `${where}.seed`, "must be a whole number or null");
  check(read === null || isPlace(read, MOST_TOKENS), `${where}.read`, "must be a number of tokens or null");
  check(isAdapter(adapter), `${where}.adapter`, "must be a name or null");
  check(Array.isArray(tokens) && tokens.length <= MOST_TOKENS, `${where}.tokens`, "must be a list");
  return {
    id: i + 1,
    parent: parent === null ? 0 : parent + 1,
    kind,
    ended,
    seed,
    read,
    adapter: adapter ?? null,
    tokens: tokens.map((token, t) => tokenOf(token, `${where}.tokens[${t}]`)),
  };
}

function tokenOf(token, where) {
  check(Array.isArray(token) && token.length === 4 && Array.isArray(token[3]), where, "must have four entries");
  check(token[3].length <= MOST_TOP, where, `must have at most ${MOST_TOP} alternatives`);
  const top = token[3].map((one, i) => {
    const place = `${where}[3][${i}]`;
    check(Array.isArray(one) && one.length === 3, place, "must have three entries");
    check(isLogprob(one[2]), place, "must have a log-probability");
    return named(one, place);
  });
  check(token[2] === null || isLogprob(token[2]), where, "must have a log-probability or null");
  return { ...named(token, where), top };
}

function named([id, text, logprob], where) {
  check(id === null || isPlace(id, 2 ** 32), where, "must have an id or null");
  check(isText(text), where, "must have a text");
  return { id, text, logprob };
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string" && value.length <= MOST_TEXT;
const isAdapter = (value) => value === undefined || value === null || isText(value);
const isPlace = (value, end) => Number.isSafeInteger(value) && value >= 0 && value < end;
const isLogprob = (value) => Number.isFinite(value) && value <= 1e-3;

function check(holds, where, wanted) {
  if (!holds) throw new SessionError(`This session cannot be opened: ${where} ${wanted}.`);
}

/** What a file of the reader's holds; it is not read if it is too large. */
export async function readFile(file) {
  if (file.size > MOST_BYTES) throw new SessionError("This file is too large for a session.");
  return fromFile(await file.text());
}

/** Give a text to the reader as a file. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const KEPT = "refgpt-session";

/** Keep a session for this tab, where a browser does and there is room. */
export function keep(text) {
  try {
    sessionStorage.setItem(KEPT, text);
  } catch {
    // The reader can still save it.
  }
}

/** What was kept; "" if nothing was. */
export function kept() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

/** Put what a file holds into a tree; ids of another model mean other texts and are left out. */
export function restore(tree, { nodes, current }, sameModel) {
  const without = (token) => ({ ...token, id: null, top: token.top?.map(without) });
  tree.load(sameModel ? nodes : nodes.map((node) => ({ ...node, tokens: node.tokens.map(without) })), current);
}
