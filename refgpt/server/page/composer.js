// The text field, and the tasks that fill it.

import { setSettings } from "./settings.js";
import { byId, make } from "./views/draw.js";

const composer = byId("composer");

/** Make the field as high as its text. */
export function fitComposer() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight + 2}px`;
}

const UNSPACED = /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u;

/** A blank between words that would run into one another, in scripts that have one. */
export function joined(before, text) {
  const meet = /[\p{L}\p{N}.,;:!?]$/u.test(before) && /^[\p{L}\p{N}]/u.test(text) && !UNSPACED.test(text);
  return meet ? ` ${text}` : text;
}

/** List the tasks of the server. */
export function drawPresets(list) {
  const items = list.map((preset) => {
    const name = `${preset.about[0].toUpperCase()}${preset.about.slice(1)}`.replace(/:.*/, "");
    const example = make("span", { class: "example" }, preset.text);
    const button = make("button", { type: "button", class: "preset" }, make("strong", {}, name), example);
    button.addEventListener("click", () => usePreset(preset));
    return make("li", {}, button);
  });
  byId("preset-list").replaceChildren(...items);
}

/** Put a task into the text field, with its example chosen, so that typing replaces it. */
function usePreset({ prompt, text, settings }) {
  composer.value = prompt;
  setSettings({ repetition_penalty: 1, ...settings });
  fitComposer();
  composer.focus();
  const at = prompt.lastIndexOf(text);
  if (at >= 0) composer.setSelectionRange(at, at + text.length);
}
