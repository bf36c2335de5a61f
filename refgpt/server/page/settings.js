// The controls of sampling. Their values are read when a text is written, and checked when they come from a file.

import { byId } from "./views/draw.js";

/** As the command line has them. */
export const DEFAULTS = {
  temperature: 0.7,
  top_p: 0.9,
  top_k: null,
  repetition_penalty: 1.15,
  max_tokens: 80,
  seed: null,
  stop: [],
};
const NUMBERS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
const SLIDERS = ["temperature", "top_p"];
const MOST_SEED = 2 ** 32;

/** Stop strings as they are typed: one a line, with escapes for what a line cannot hold. */
const ESCAPES = { "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r" };
const escaped = (text) => text.replace(/[\\\n\t\r]/g, (character) => ESCAPES[character]);
const unescaped = (line) =>
  line.replace(/\\([ntr\\])/g, (_, name) => ({ n: "\n", t: "\t", r: "\r", "\\": "\\" })[name]);

/** The number in a control, moved into its bounds; null where it is empty, for which there is a default. */
function numberIn(name) {
  const input = byId(name);
  const { valueAsNumber: value } = input;
  if (!Number.isFinite(value)) return null;
  const within = Math.min(Math.max(value, Number(input.min)), Number(input.max));
  return input.step === "1" ? Math.round(within) : within;
}

/** What the controls say. */
export function readSettings() {
  const settings = Object.fromEntries(NUMBERS.map((name) => [name, numberIn(name)]));
  settings.max_tokens ??= DEFAULTS.max_tokens;
  settings.repetition_penalty ??= 1;
  const lines = byId("stop-field").hidden ? [] : byId("stop-strings").value.split("\n");
  settings.stop = lines.filter(Boolean).map(unescaped);
  return settings;
}

/** Bound the controls by what the server allows, and hide those that do nothing there or with this mask. */
export function fitSettings({ mostTokens, mostStops }, mask) {
  if (mostTokens) byId("max_tokens").max = mostTokens;
  byId("max_tokens").value = numberIn("max_tokens") ?? "";
  byId("stop-field").hidden = mostStops === 0;
  byId("score-field").hidden = mask === "prefix"; // then no token of a prompt is predicted without being seen
}

/** Set the controls; whatever is missing or cannot be used gets its default. */
export function setSettings(given) {
  for (const name of NUMBERS) {
    const value = given[name] === undefined ? DEFAULTS[name] : given[name];
    byId(name).value = Number.isFinite(value) ? value : "";
    byId(name).value = numberIn(name) ?? "";
  }
  const stop = Array.isArray(given.stop) ? given.stop.filter((one) => typeof one === "string") : DEFAULTS.stop;
  byId("stop-strings").value = stop.map(escaped).join("\n");
  showSliders();
}

function showSliders() {
  for (const name of SLIDERS) byId(`${name}-value`).textContent = byId(name).valueAsNumber.toFixed(2);
  byId("stop-strings").rows = Math.max(1, byId("stop-strings").value.split("\n").length);
}

/** Listen to the controls. */
export function startSettings() {
  setSettings(DEFAULTS);
  byId("settings-form").addEventListener("input", showSliders);
  byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
  byId("defaults").addEventListener("click", () => setSettings(DEFAULTS));
}

/** The seed of the next text: the reader's, or a random one, so that every branch can be written again. */
export const nextSeed = ({ seed }) => seed ?? crypto.getRandomValues(new Uint32Array(1))[0];

/** After a text was thrown away for another, the reader's seed moves on: the same one would give the same text. */
export function advanceSeed() {
  const { seed } = readSettings();
  if (seed !== null) byId("seed").value = (seed + 1) % MOST_SEED;
}

/** The fields of a request. */
export function requestOf({ temperature, top_p, top_k, repetition_penalty, stop }) {
  const request = { temperature, top_p, repetition_penalty };
  if (top_k) request.top_k = top_k;
  if (stop.length) request.stop = stop;
  return request;
}
