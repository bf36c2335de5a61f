// Tokens as the server names them, for the eye and for the ear, and the scale of colours of their probabilities.

import { make } from "./views/draw.js";

const BYTES = "bytes:"; // how a token is named that holds a part of a character
const decoder = () => new TextDecoder("utf-8", { ignoreBOM: true });
const encoder = new TextEncoder();

/** The bytes of a token. */
function bytesOf({ text }) {
  if (/^token_id:\d+$/.test(text)) return [];
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(text)) return encoder.encode(text);
  return text
    .slice(BYTES.length)
    .match(/[0-9a-f]{2}/g)
    .map((digits) => parseInt(digits, 16));
}

/** The text that tokens make together. */
export const textOf = (tokens) => decoder().decode(Uint8Array.from(tokens.flatMap((token) => [...bytesOf(token)])));

/** Whether a token ends a text: it has no text of its own. */
export const isEnd = (token) => token.text === "";

/**
 * What each token adds to the text that is seen. A character that several tokens hold appears with the last of them;
 * the others, and those with no text at all, are null.
 */
export class Pieces {
  #decoder = decoder();

  push(token) {
    if (isEnd(token) || /^token_id:\d+$/.test(token.text)) return null;
    const text = this.#decoder.decode(Uint8Array.from(bytesOf(token)), { stream: true });
    return text === "" ? null : text;
  }
}

// Characters that would be seen as nothing, or would move the text around them; a line break is shown as one.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const NAMES = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
const codeOf = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const mark = (text) => make("i", { class: text.length > 1 ? "long" : "" }, text);

/** Text for those who listen: without characters that nobody hears. */
export const audible = (text) => text.replace(new RegExp(HIDDEN, "gu"), (found) => (found === "\n" ? found : " "));

/** Text in flow: as it is, with marks for what could not be seen. */
export function flow(text) {
  const parts = [];
  let plain = "";
  for (const character of text) {
    if (character === "\n") {
      parts.push(plain, mark("↵"));
      plain = "\n";
    } else if (HIDDEN.test(character) && character !== "\t" && !/[\u200c\u200d]/.test(character)) {
      parts.push(plain, mark(codeOf(character)));
      plain = "";
    } else plain += character;
  }
  return [...parts, plain].filter((part) => part !== "");
}

/**
 * A token in the text. Only its ink is coloured: coloured blanks before words would be stripes at the ends of lines.
 */
export function inked(text) {
  const [blank] = text.match(/^[ \t]*/);
  if (blank === text) return [make("span", { class: "ink" }, ...flow(text))];
  return [...flow(blank), make("span", { class: "ink" }, ...flow(text.slice(blank.length)))];
}

/** A token by itself: blanks are marked too. */
export function label(token) {
  const shown = make("bdi", { class: "token" });
  if (isEnd(token)) shown.append(mark("end of text"));
  else if (/^(bytes:\\x|token_id:)/.test(token.text)) shown.append(mark(token.text.replaceAll("\\x", " ").trim()));
  else
    for (const character of token.text) {
      if (character in NAMES) shown.append(mark(NAMES[character]));
      else if (HIDDEN.test(character)) shown.append(mark(codeOf(character)));
      else shown.append(character);
    }
  return shown;
}

/** A token as words, for those who listen. */
export function spoken(token) {
  if (isEnd(token)) return "end of text";
  const text = audible(token.text).trim();
  if (text !== "") return text;
  return [...token.text].map((c) => ({ " ": "space", "\n": "line break", "\t": "tab" })[c] ?? codeOf(c)).join(" ");
}

export const probability = (token) => (token.logprob === null ? null : Math.exp(token.logprob));

/** A probability in per cent, in as many digits as it is worth. */
export function percent(p) {
  if (p >= 0.9995) return "100\u00a0%";
  if (p >= 0.0995) return `${(100 * p).toFixed(0)}\u00a0%`;
  if (p >= 0.00095) return `${(100 * p).toFixed(p < 0.00995 ? 2 : 1)}\u00a0%`;
  return p >= 1e-6 ? `${Number((100 * p).toPrecision(1))}\u00a0%` : "< 0.0001\u00a0%";
}

/** Where the steps of the scale of colours begin; the first is for what is all but certain. */
export const STEPS = [0.8, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 0];

/** The step of a token on the scale, from 0 (certain) to 7 (a surprise); null without a probability. */
export function stepOf(token) {
  const p = probability(token);
  return p === null ? null : STEPS.findIndex((least) => p >= least);
}
