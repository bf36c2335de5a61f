// Choosing one of many: by pointing, by a tap, or with the arrow keys, for which all together are one tab stop.

/**
 * @param {HTMLElement[]} items  in rows, one after another
 * @param {number} columns  how many lie in a row; 1 where rows mean nothing
 * @param {string} state  the attribute that tells which one is chosen
 * @param {(i: number) => void} choose  called with the one that becomes chosen
 * @returns {(i: number) => void} chooses one
 */
export function chooser(items, columns, state, choose) {
  const places = new Map(items.map((item, i) => [item, i]));
  let chosen = 0;

  function select(i) {
    if (items[i].getAttribute(state) === "true") return;
    items[chosen].setAttribute(state, "false");
    items[chosen].tabIndex = -1;
    chosen = i;
    items[i].setAttribute(state, "true");
    items[i].tabIndex = 0;
    choose(i);
  }

  function move(event) {
    const row = columns > 1 ? columns : items.length;
    const first = chosen - (chosen % row);
    const last = Math.min(first + row, items.length) - 1;
    const goals = {
      ArrowLeft: Math.max(chosen - 1, first),
      ArrowRight: Math.min(chosen + 1, last),
      ArrowUp: chosen - columns,
      ArrowDown: chosen + columns,
      Home: first,
      End: last,
    };
    const goal = goals[event.key];
    if (goal === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (goal >= 0 && goal < items.length) items[goal].focus();
  }

  for (const item of items) {
    item.tabIndex = -1;
    item.setAttribute(state, "false");
    item.addEventListener("focus", () => select(places.get(item)));
    // Moved, not entered: scrolling brings items under a pointer that rests, which would fight with the keyboard.
    item.addEventListener("pointermove", () => select(places.get(item)));
    item.addEventListener("click", () => item.focus());
    item.addEventListener("keydown", move);
  }
  return select;
}
