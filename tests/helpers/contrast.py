"""How well text stands out from its ground, as WCAG 2 measures it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

#: Elements that hold text of their own, with its colour and all backgrounds from the page's own to theirs.
COLOURS = r"""
const numbers = (colour) => {
  const found = colour.match(/[\d.]+(e-?\d+)?/g).map(Number);
  const rgb = colour.startsWith("color(srgb") ? found.slice(0, 3).map((x) => 255 * x) : found.slice(0, 3);
  return [...rgb, found.length > 3 ? found[3] : 1];
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!own || ["SCRIPT", "NOSCRIPT"].includes(element.tagName) || !element.checkVisibility()) continue;
  if (element.closest(":disabled")) continue; // faint on purpose
  const grounds = [];
  let opacity = 1;
  for (let at = element; at; at = at.parentElement) {
    grounds.unshift(numbers(getComputedStyle(at).backgroundColor));
    opacity *= getComputedStyle(at).opacity;
  }
  found.push([element.className || element.tagName, numbers(getComputedStyle(element).color), grounds, opacity]);
}
return found;
"""


def luminance(rgb: Iterable[float]) -> float:
    """Of WCAG 2, from 0 (black) to 1 (white)."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.asarray(rgb) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(ink: list[float], grounds: Iterable[list[float]], opacity: float) -> float:
    """Between an ink and all that lies below it, from 1 to 21."""
    ground = np.array([255.0, 255, 255])
    for *rgb, alpha in grounds:
        ground = alpha * np.array(rgb) + (1 - alpha) * ground
    ink = opacity * np.array(ink[:3]) + (1 - opacity) * ground
    low, high = sorted((luminance(ink), luminance(ground)))
    return (high + 0.05) / (low + 0.05)
