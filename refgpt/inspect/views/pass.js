// What `gather` (refgpt/inspect/data.py) tells about one forward pass, with the numbers unpacked.

const STEPS = 65535; // of an attention probability, as in data.py

/** The numbers of a packed array (little-endian, in base64), in one flat row. */
function unpack({ base64, dtype }) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  if (dtype === "u2") return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  if (dtype === "u4") return Uint32Array.from({ length: bytes.length / 4 }, (_, i) => view.getUint32(4 * i, true));
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** The best tokens of one row: [id, probability], the likeliest first. */
function bestOf({ width, ids, p }, row) {
  const places = Array.from({ length: width }, (_, i) => row * width + i);
  return places.map((i) => [ids[i], p[i]]);
}

/**
 * A pass, ready to be drawn.
 *
 * @param {object} data  as `gather` makes it; parts that were not asked for may be missing
 * @param {number} [next]  the id that follows the prompt, where it is known
 */
export function readPass(data, next) {
  const { ids, tokens, n_layer: nLayer, n_head: nHead, n_vocab: nVocab, prefix_len: prefixLen } = data;
  const nTokens = ids.length;
  const pass = { ids, tokens, nTokens, nLayer, nHead, nVocab, prefixLen, attribution: data.attribution };

  /** The id after a position; undefined after the last one, unless it is known. */
  pass.idAfter = (t) => (t + 1 < nTokens ? ids[t + 1] : next);

  if (data.predictions) {
    const { ids: best, p, given, rank } = data.predictions;
    const predicted = { width: best.shape[1], ids: unpack(best), p: unpack(p) };
    pass.given = unpack(given);
    pass.rank = unpack(rank);
    pass.predictedAfter = (t) => bestOf(predicted, t);
  }
  if (data.lens) {
    const lens = { width: data.lens.ids.shape[2], ids: unpack(data.lens.ids), p: unpack(data.lens.p) };
    pass.lensAt = (layer, t) => bestOf(lens, layer * nTokens + t);
  }
  if (data.heads) {
    pass.titles = data.heads.titles;
    pass.opening = data.heads.opening;
    const titles = new Map(pass.titles.map((title) => [title.layer * nHead + title.head, title]));
    /** The title of a head: {kind, score}; undefined where no kind qualifies. */
    pass.titleOf = (layer, head) => titles.get(layer * nHead + head);
  }
  if (data.pattern) {
    // A head's pattern holds for each query the keys that it may see: itself and what came before, and of a prefix all.
    const patterns = unpack(data.pattern);
    const seenBy = (query) => Math.max(query + 1, prefixLen);
    const rowStarts = [0];
    for (let query = 0; query < nTokens; query++) rowStarts.push(rowStarts[query] + seenBy(query));
    /** How much a query looks at a key, from 0 to 1; null where the mask hides it. */
    pass.weight = (layer, head, query, key) => {
      if (key >= seenBy(query)) return null;
      return patterns[(layer * nHead + head) * rowStarts[nTokens] + rowStarts[query] + key] / STEPS;
    };
  }
  return pass;
}
