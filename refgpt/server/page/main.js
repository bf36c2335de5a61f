// The page: what its buttons do, and what it remembers.

import * as adapters from "./adapters.js";
import { model as served, presets, ServerError, useKey } from "./api.js";
import { drawPresets, fitComposer } from "./composer.js";
import { listen } from "./controls.js";
import { Inside } from "./inside.js";
import { calm, complain, say } from "./messages.js";
import { Paper } from "./paper.js";
import { download, fromFile, keep, kept, readFile, restore, SessionError, toFile } from "./session.js";
import { fitSettings, readSettings, setSettings, startSettings } from "./settings.js";
import { drawLegend, startTheme } from "./theme.js";
import { Tree } from "./tree.js";
import { View } from "./view.js";
import { byId } from "./views/draw.js";
import { Writing } from "./writing.js";

let model = { name: "", context: null, inspects: false };

const tree = new Tree();
const view = new View(tree, {
  describe,
  turn,
  walk,
  drop: dropBranch,
  isRunning: () => writing.isRunning,
  drawn: () => {
    if (model.name && !writing.isRunning) keep(session());
  },
});
const writing = new Writing(tree, view);
const inside = new Inside(() => byId("paper").querySelector('[tabindex="0"]')?.focus());

// ---------------------------------------------------------------------------------------------------------------------
// One token.

/** How many of the tokens before one saw each other when the model came to it. */
const prefixOf = ({ read, adapter }, n) => (adapters.maskWith(adapter) === "prefix" ? Math.min(read ?? n, n) : 0);

/** What the window of alternatives shows of a token. */
function describe(element) {
  const { node: id, place } = Paper.placeOf(element);
  const node = tree.node(id);
  const tokens = writing.tokensAt(id);
  const token = tokens[place];
  const before = [...tree.tokens(node.parent), ...tokens.slice(0, place)];
  const actions = [
    { name: "Again from here", icon: "retry", run: () => writing.branchAt(id, place) },
    { name: "Write here", icon: "pen", run: () => writing.writeAt(id, place) },
  ];
  if (node.kind === "written") actions.push({ name: "Edit", icon: "pen", run: () => writing.edit(id) });
  const ids = before.map((one) => one.id);
  if (model.inspects && adapters.isServed(node.adapter) && ids.length && token.id !== null && !ids.includes(null))
    actions.push({
      name: "Look inside",
      icon: "inside",
      run: () => inside.show(ids, token, prefixOf(node, ids.length), node.adapter),
    });
  const branch = (one) => writing.branchAt(id, place, { ...one, top: token.top });
  return { token, writer: Paper.writerOf(node), actions, branch };
}

// ---------------------------------------------------------------------------------------------------------------------
// Branches.

async function walk(id) {
  await writing.stop();
  view.endComparison();
  tree.walk(id);
  view.draw();
}

/** Go to a sibling, with the focus on the same button as before. */
async function turn(id, step) {
  await walk(id);
  byId("paper")
    .querySelector(`.fork[data-node="${id}"] button:${step < 0 ? "first" : "last"}-of-type`)
    ?.focus();
}

async function dropBranch(id) {
  await writing.stop();
  tree.remember();
  tree.dropBranch(id);
  view.draw();
}

/** Undo or redo, where there is something. */
function turnBack(step) {
  if (step === "undo" ? tree.canUndo : tree.canRedo) tree[step]();
  view.draw();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sessions.

/** The session as a file. */
const session = () => toFile(tree, model.name, adapters.chosen(), readSettings());

async function startNew() {
  await writing.stop();
  calm();
  if (!tree.isEmpty) tree.remember();
  tree.clear();
  byId("composer").value = "";
  fitComposer();
  if (inside.isOpen) inside.close();
  view.draw();
  byId("figures").textContent = "";
  byId("composer").focus();
}

function save() {
  const now = new Date().toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-");
  download(`refgpt-session-${now}.json`, session());
}

/** Take over what a file holds. */
function takeOver(file) {
  const isSame = file.model === model.name;
  restore(tree, file, isSame);
  setSettings(file.settings);
  adapters.choose(isSame ? file.adapter : null);
  fit();
  view.draw();
  if (!isSame)
    complain(new SessionError("This session was written with another model. Its text is kept; this model goes on."));
  else if (!adapters.isServed(file.adapter))
    complain(new SessionError(`The adapter ${file.adapter} is not served here; the model without it goes on.`));
}

async function open(file) {
  await writing.stop();
  calm();
  try {
    const read = await readFile(file);
    tree.remember();
    takeOver(read);
    say("Session opened");
  } catch (error) {
    complain(error);
  }
}

/** Go on where this tab was before it was loaded again. */
function takeUp() {
  if (!tree.isEmpty) return;
  try {
    const before = fromFile(kept());
    if (before.model !== model.name) return;
    takeOver(before);
  } catch (error) {
    if (!(error instanceof SessionError)) throw error; // nothing is kept
  }
  view.draw();
}

// ---------------------------------------------------------------------------------------------------------------------
// Beginning.

/** Ask the server what it is. */
async function connect() {
  try {
    model = await served();
    writing.model = model;
    adapters.list(model);
    fit();
    byId("model").textContent = model.name;
    calm();
    takeUp();
    drawPresets(await presets());
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    complain(error);
  }
}

/** Fit the controls to the server and to the chosen adapter. */
const fit = () => fitSettings(model, adapters.maskWith(adapters.chosen()));

function useThatKey(key) {
  useKey(key);
  connect();
}

startTheme(() => inside.repaint());
drawLegend();
startSettings();
adapters.listen(() => {
  fit();
  view.drawRest();
});
listen(
  {
    goOn: () => writing.goOn(),
    stop: () => writing.stop().then(() => byId("composer").focus()),
    retry: () => writing.retry(),
    undo: () => turnBack("undo"),
    redo: () => turnBack("redo"),
    text: () => tree.text(),
    compare: () => view.toggleComparison(),
    new: startNew,
    save,
    open,
    useKey: useThatKey,
  },
  () => writing.isRunning,
);
view.draw();
connect();
