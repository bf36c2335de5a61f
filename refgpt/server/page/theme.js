// Light and dark, the legend of the colours, and the figures of a text.

import { percent, STEPS } from "./tokens.js";
import { byId, make } from "./views/draw.js";

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
const STORED = "refgpt-theme";

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null; // where a browser keeps nothing
  }
}

/** The reader's own choice, or the system's. */
export function startTheme(changed) {
  const names = Object.keys(THEMES);
  let theme = names.includes(stored()) ? stored() : "auto";

  function show() {
    document.documentElement.dataset.theme = theme;
    byId("theme-name").textContent = THEMES[theme];
    byId("theme").setAttribute("aria-label", `Colours: ${THEMES[theme].toLowerCase()}`);
    changed();
  }

  byId("theme").addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try {
      localStorage.setItem(STORED, theme);
    } catch {
      // It then lasts as long as the page.
    }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}

export function drawLegend() {
  const items = STEPS.map((least, i) => {
    const name = i === STEPS.length - 1 ? `< ${percent(STEPS[i - 1])}` : `≥ ${percent(least)}`;
    return make("li", { class: `h${i}` }, name);
  });
  byId("legend-steps").append(...items);
}

/** Speed and tokens. */
export function showFigures({ began, first, last, written, read }, context) {
  const parts = [`${read} + ${written} tokens`];
  if (context) parts[0] += ` of ${context}`;
  if (first !== null) parts.push(`first after ${Math.round(first - began)} ms`);
  if (written > 1 && last > first) parts.push(`${((1000 * (written - 1)) / (last - first)).toFixed(1)} tokens/s`);
  byId("figures").textContent = parts.join(" · ");
}
