// The page: what its buttons do, and what is shown when.

import * as adapters from "./adapters.js";
import { Alternatives } from "./alternatives.js";
import { model as served, presets, ServerError, tokenize, useKey } from "./api.js";
import { drawBranches, drawComparison, latestBranches } from "./branches.js";
import { drawPresets, fitComposer, joined } from "./composer.js";
import { listen } from "./controls.js";
import { Inside } from "./inside.js";
import { calm, complain, say } from "./messages.js";
import { Paper } from "./paper.js";
import { addBeat, drawPulse } from "./pulse.js";
import { download, fromFile, keep, kept, readFile, restore, SessionError, toFile } from "./session.js";
import { advanceSeed, fitSettings, readSettings, setSettings, startSettings } from "./settings.js";
import { drawLegend, showFigures, startTheme } from "./theme.js";
import { audible, textOf } from "./tokens.js";
import { ROOT, Tree } from "./tree.js";
import { byId } from "./views/draw.js";
import { Writer } from "./writer.js";

const tree = new Tree();
const compared = new Set();
let comparing = false;
let model = { name: "", context: null, inspects: false };
let live = null; // the node that is being written
let starting = false; // whether the reader's words are being sent
let wordsAsTheyAre = false; // whether no blank may be put before them
let takeBack = { always: false, words: "" }; // what to do if no token comes
let follows = false; // whether the page is scrolled with what is written, until the reader scrolls

const composer = byId("composer");
const paper = new Paper(byId("paper"), {
  point: (element) => alternatives.point(element),
  leave: () => alternatives.leave(),
  pin: (element, withFocus) => alternatives.pin(element, withFocus),
  turn,
});
const alternatives = new Alternatives(describe);
const inside = new Inside(() => byId("paper").querySelector('[tabindex="0"]')?.focus());
const writer = new Writer(tree, {
  begin,
  token: addToken,
  scored: drawPaper,
  nothing: cameToNothing,
  end,
});

// ---------------------------------------------------------------------------------------------------------------------
// What is shown.

/** Draw everything that follows from the tree. */
function draw() {
  drawPaper();
  drawRest();
}

function drawPaper() {
  alternatives.close();
  paper.draw(tree);
  drawPulse(tree.tokens());
}

/** All but the paper, which grows by itself while a text is written. */
function drawRest() {
  for (const id of compared) if (!tree.leaves.some((leaf) => leaf.id === id)) compared.delete(id);
  comparing &&= compared.size > 0;
  drawBranches(byId("branches"), tree, comparing ? compared : null, { walk, compare, drop: dropBranch });
  if (comparing) drawComparison(byId("comparison"), tree, [...compared], walk);
  byId("comparison").hidden = !comparing;
  byId("paper").hidden = comparing;
  byId("compare").setAttribute("aria-pressed", String(comparing));
  byId("compare").hidden = tree.leaves.length < 2;
  byId("branches-empty").hidden = !tree.isEmpty;
  const empty = tree.current === ROOT;
  byId("start").hidden = byId("presets").hidden = !empty;
  byId("legend").hidden = empty;
  byId("sheet").classList.toggle("begins", empty);
  byId("go-name").textContent = empty ? "Begin" : "Go on";
  fitComposer();
  composer.placeholder = empty ? "Once upon a time" : "Add words, or let it go on";
  drawButtons();
  if (model.name && !writer.isRunning) keep(session());
}

function drawButtons() {
  const running = writer.isRunning;
  byId("go").hidden = running;
  byId("stop").hidden = !running;
  byId("retry").disabled = running || tree.current === ROOT;
  byId("undo").disabled = running || !tree.canUndo;
  byId("redo").disabled = running || !tree.canRedo;
  byId("copy").disabled = byId("save").disabled = tree.isEmpty;
  byId("copy").hidden = !navigator.clipboard; // browsers have none for pages over plain HTTP from elsewhere
  byId("sheet").classList.toggle("writing", running);
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing.

function begin(node, figures) {
  live = { id: node.id, tokens: [] };
  follows = true;
  draw();
  showFigures(figures, model.context);
  say("Writing");
}

function addToken(token, figures) {
  live.tokens.push(token);
  paper.append(token);
  addBeat(token);
  showFigures(figures, model.context);
  // The line below the text field, which itself stays at the foot of the window.
  if (follows) byId("figures").scrollIntoView({ block: "nearest", behavior: "instant" });
}

function end() {
  const node = live && tree.node(live.id);
  live = null;
  if (node) drawRest();
  else draw();
  const why = { stop: "to its end", stopped: "until it was stopped", broken: "until the connection ended" };
  if (node)
    say(`${node.tokens.length} tokens written ${why[node.ended] ?? ""}: ${audible(tree.text(node.id).slice(-2000))}`);
}

/** Write on from a node; whatever goes wrong is told. */
async function write(parent) {
  calm();
  alternatives.close();
  comparing = false;
  tree.stay(parent);
  try {
    // With a prefix mask, the rows of a prompt have already seen the tokens that they would give a probability to.
    const adapter = adapters.chosen();
    await writer.write(parent, byId("score-written").checked && adapters.maskWith(adapter) !== "prefix", adapter);
  } catch (error) {
    complain(error);
  }
}

/** No token came: take back what was done for it, and give the reader's words back. */
function cameToNothing(failed) {
  if (failed || takeBack.always) tree.forget();
  if (failed && takeBack.words) composer.value = takeBack.words;
}

/** The reader's own words, then the model's. */
async function goOn() {
  if (writer.isRunning || starting) return;
  const typed = composer.value || (tree.current === ROOT ? composer.placeholder : "");
  const parent = tree.current;
  const tokens = typed ? await ownTokens(wordsAsTheyAre ? typed : joined(tree.text(parent), typed)) : [];
  if (tokens === null) return;
  takeBack = { always: false, words: composer.value };
  wordsAsTheyAre = false;
  tree.remember();
  const from = tokens.length ? tree.add(parent, { kind: "written", tokens, adapter: adapters.chosen() }) : parent;
  composer.value = "";
  await write(from);
}

/** The tokens of the reader's words; null if the server does not tell. */
async function ownTokens(text) {
  calm();
  starting = true;
  try {
    return await tokenize(text);
  } catch (error) {
    complain(error);
    return null;
  } finally {
    starting = false;
  }
}

/** Write the last part anew, beside what is there. */
async function retry() {
  if (writer.isRunning || tree.current === ROOT) return;
  const last = tree.path().findLast((node) => node.kind === "generated");
  takeBack = { always: true, words: "" };
  tree.remember();
  if (last) advanceSeed();
  await write(last ? last.parent : tree.current);
}

/** Go another way at a token: with another one in its place, or anew. */
async function branchAt(node, place, token) {
  await writer.stop();
  takeBack = { always: true, words: "" };
  tree.remember();
  const { read, adapter } = tree.node(node);
  const parent = tree.cut(node, place);
  const from = token ? tree.add(parent, { kind: "chosen", tokens: [token], read, adapter }) : parent;
  if (!token) advanceSeed();
  await write(from);
  // The keyboard's focus was on the window of alternatives, which is closed.
  if (document.activeElement === document.body) paper.elementOf(from, 0)?.focus({ preventScroll: true });
}

/** Leave a text before a token, and write on by hand. */
async function writeAt(node, place) {
  await writer.stop();
  const blank = tree.node(node).tokens[place].text.startsWith(" ") ? " " : "";
  tree.remember();
  tree.stay(tree.cut(node, place));
  writeByHand(blank);
}

/** Take the reader's own words back into the text field; what becomes of them is a branch. */
async function edit(node) {
  await writer.stop();
  const { parent, tokens } = tree.node(node);
  tree.remember();
  tree.stay(parent);
  writeByHand(textOf(tokens));
}

/** Give the reader words to change, exactly as they will be read. */
function writeByHand(words) {
  composer.value = words;
  wordsAsTheyAre = true;
  draw();
  composer.focus();
}

// ---------------------------------------------------------------------------------------------------------------------
// One token.

/** The tokens of a node, also of one that is being written. */
const tokensAt = (id) => (live?.id === id ? live.tokens : tree.node(id).tokens);

/** How many of the tokens before one saw each other when the model came to it. */
const prefixOf = ({ read, adapter }, n) => (adapters.maskWith(adapter) === "prefix" ? Math.min(read ?? n, n) : 0);

/** What the window of alternatives shows of a token. */
function describe(element) {
  const { node: id, place } = Paper.placeOf(element);
  const node = tree.node(id);
  const token = tokensAt(id)[place];
  const before = [...tree.tokens(node.parent), ...tokensAt(id).slice(0, place)];
  const actions = [
    { name: "Again from here", icon: "retry", run: () => branchAt(id, place) },
    { name: "Write here", icon: "pen", run: () => writeAt(id, place) },
  ];
  if (node.kind === "written") actions.push({ name: "Edit", icon: "pen", run: () => edit(id) });
  const ids = before.map((one) => one.id);
  if (model.inspects && adapters.isServed(node.adapter) && ids.length && token.id !== null && !ids.includes(null))
    actions.push({
      name: "Look inside",
      icon: "inside",
      run: () => inside.show(ids, token, prefixOf(node, ids.length), node.adapter),
    });
  const branch = (one) => branchAt(id, place, { ...one, top: token.top });
  return { token, writer: Paper.writerOf(node), actions, branch };
}

// ---------------------------------------------------------------------------------------------------------------------
// Branches.

async function walk(id) {
  await writer.stop();
  comparing = false;
  tree.walk(id);
  draw();
}

/** Go to a sibling, with the focus on the same button as before. */
async function turn(id, step) {
  await walk(id);
  byId("paper")
    .querySelector(`.fork[data-node="${id}"] button:${step < 0 ? "first" : "last"}-of-type`)
    ?.focus();
}

function compare(id, chosen) {
  if (chosen) compared.add(id);
  else compared.delete(id);
  comparing = compared.size > 0;
  draw();
}

function toggleComparison() {
  comparing = !comparing;
  if (comparing && compared.size < 2) {
    compared.clear();
    latestBranches(tree).forEach((id) => compared.add(id));
  }
  draw();
}

async function dropBranch(id) {
  await writer.stop();
  tree.remember();
  tree.dropBranch(id);
  draw();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sessions.

/** The session as a file. */
const session = () => toFile(tree, model.name, adapters.chosen(), readSettings());

async function startNew() {
  await writer.stop();
  calm();
  if (!tree.isEmpty) tree.remember();
  tree.clear();
  composer.value = "";
  fitComposer();
  if (inside.isOpen) inside.close();
  draw();
  byId("figures").textContent = "";
  composer.focus();
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
  draw();
  if (!isSame)
    complain(new SessionError("This session was written with another model. Its text is kept; this model goes on."));
  else if (!adapters.isServed(file.adapter))
    complain(new SessionError(`The adapter ${file.adapter} is not served here; the model without it goes on.`));
}

async function open(file) {
  await writer.stop();
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

// ---------------------------------------------------------------------------------------------------------------------
// Beginning.

/** Ask the server what it is. */
async function connect() {
  try {
    model = await served();
    writer.model = model;
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
  draw();
}

/** Undo or redo, where there is something. */
function turnBack(step) {
  if (step === "undo" ? tree.canUndo : tree.canRedo) tree[step]();
  draw();
}

function useThatKey(key) {
  useKey(key);
  connect();
}

for (const kind of ["wheel", "touchmove"]) addEventListener(kind, () => (follows = false), { passive: true });
startTheme(() => inside.repaint());
drawLegend();
startSettings();
adapters.listen(() => {
  fit();
  drawRest();
});
listen(
  {
    goOn,
    stop: () => writer.stop().then(() => composer.focus()),
    retry,
    undo: () => turnBack("undo"),
    redo: () => turnBack("redo"),
    text: () => tree.text(),
    compare: toggleComparison,
    new: startNew,
    save,
    open,
    useKey: useThatKey,
  },
  () => writer.isRunning,
);
draw();
connect();
