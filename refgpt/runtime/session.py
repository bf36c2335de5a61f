"""Texts in progress: prefill, then decode, each sequence at its own position."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError
from refgpt.kernels import Program, forced_isa
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.panels import LANES
from refgpt.numbers.tree import ParamTree
from refgpt.runtime import saved
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.runtime.engine import Part, adapter_named, check_slots, no_empty_slot, not_empty
from refgpt.runtime.families import Family
from refgpt.runtime.mixing import MOST_RECORDED, Groups, Mixer, groups_of
from refgpt.runtime.recorded import MOST_ROWS, RecordedPass
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_cut, check_ids, check_prefix, check_tokens

#: Rows of a long prompt that go through the model together; enough for the kernels to work at full speed.
PREFILL_ROWS = 512


class Packed(Protocol):
    """What a session asks of its engine, a ``refgpt.runtime.Runtime``."""

    config: AnyConfig
    family: Family
    params: ParamTree
    kv_dtype: KVDtype
    threads: int

    @property
    def adapters(self) -> Mapping[str, Packed]:
        """Engines by the names of their adapters."""
        ...

    def tables(self, n_positions: int) -> Any:
        """The family's tables by position."""
        ...

    def check_files(self) -> None:
        """Raise a CheckpointError if a file of weights has been written to since it was opened."""
        ...

    def identity(self) -> dict[str, Any]:
        """See ``Engine.identity``."""
        ...

    def digests(self, words: np.ndarray) -> np.ndarray:
        """See ``refgpt.kernels.digests``."""
        ...


class RuntimeSession:
    """See ``refgpt.runtime.engine.Session``. Results are bitwise independent of batching and prompt chunking."""

    def __init__(self, runtime: Packed, n_seqs: int, capacity: int) -> None:
        if n_seqs < 1 or capacity < 1:
            raise GenerationError("a session needs room", got=f"{n_seqs} of {capacity} positions", wanted="1 at least")
        self._runtime = runtime
        self.cache = KVCache(runtime.config, n_seqs, min(capacity, runtime.config.n_ctx), runtime.kv_dtype)
        self._tables = runtime.tables(1)
        self._buffers = self._new_buffers(n_seqs)
        self._recorded: dict[tuple[int, int, bool, str | None, Groups], RecordedPass] = {}
        self._adapters: list[str | None] = [None] * n_seqs
        trees = {name: engine.params for name, engine in runtime.adapters.items()}
        self._mixer = Mixer(runtime.params, trees) if trees else None

    def step(self, parts: Sequence[Part], n_rows: Sequence[int] | None = None) -> np.ndarray:
        """See ``Session.step``."""
        slots = self._check_slots([slot for slot, _, _ in parts])
        counts = [1] * len(parts) if n_rows is None else list(n_rows)
        if len(counts) != len(parts):
            raise GenerationError("not one number a part", where="n_rows", got=len(counts), wanted=len(parts))
        adapters = [self._adapters[slot] for slot in slots]
        names = [adapter or "" for adapter in adapters]
        if self._mixer is None or names == sorted(names):
            return self._step(parts, slots, counts, adapters)
        order = sorted(range(len(parts)), key=names.__getitem__)
        # Rows of one adapter have to be neighbours.
        sizes = [counts[i] for i in order]
        found = self._step([parts[i] for i in order], slots[order], sizes, [adapters[i] for i in order])
        pieces = np.split(found, np.cumsum(sizes)[:-1])
        return np.concatenate([pieces[order.index(i)] for i in range(len(parts))])

    def _step(
        self, parts: Sequence[Part], slots: np.ndarray, counts: list[int], adapters: list[str | None]
    ) -> np.ndarray:
        """``step`` for parts in the order of their adapters."""
        tokens, prefix_lens, starts = [], [], self.cache.lengths[slots].tolist()
        for i, ((_, ids, prefix_len), start) in enumerate(zip(parts, starts, strict=True)):
            tokens.append(check_ids(ids, self._runtime.config))
            prefix_lens.append(check_prefix(prefix_len, len(tokens[i]), self._runtime.config))
            if prefix_lens[i] and start:
                raise GenerationError("a prefix must begin its sequence", where="prefix_len", got=prefix_len)
            self._check_room(start + len(tokens[i]))
            counts[i] = whole_number(f"n_rows[{i}]", counts[i], 0, len(tokens[i]), GenerationError)
        # Lists, since most passes have few rows, of which NumPy's calls would take longer than these loops.
        stops = [start + len(new) for start, new in zip(starts, tokens, strict=True)]
        positions = [position for start, stop in zip(starts, stops, strict=True) for position in range(start, stop)]
        of_rows = [i for i, new in enumerate(tokens) for _ in new]  # the part of each row
        ids = tokens[0] if len(tokens) == 1 else np.concatenate(tokens)
        prefixes = np.array(prefix_lens)[of_rows] if any(prefix_lens) else 0
        cache = self.cache
        for slot, stop in zip(slots.tolist(), stops, strict=True):
            cache.make_writable(slot, stop)
        window = self._runtime.config.window
        batch = Batch.of(ids, slots[of_rows], np.array(positions), prefixes, window, cache.tables, cache.block)
        # At least the last row of each part is computed: keys that overflowed would make it NaN.
        ends = accumulate(map(len, tokens))
        wanted = np.array([row for end, n in zip(ends, counts, strict=True) for row in range(end - max(n, 1), end)])
        logits = self._pass(batch, wanted, groups_of(adapters, list(map(len, tokens))))
        for slot, new, start, prefix_len in zip(slots, tokens, starts, prefix_lens, strict=True):
            if not start:
                cache.prefix_lens[slot] = prefix_len
            cache.hold(slot, start, new)
        if 0 in counts:
            logits = logits[np.repeat(np.array(counts) > 0, np.maximum(counts, 1))]
        return logits

    def use_adapter(self, seq: int, adapter: str | None) -> None:
        """See ``Session.use_adapter``."""
        self._check_slots([seq])
        if adapter is not None:
            adapter_named(self._runtime.adapters, adapter)
        if adapter != self._adapters[seq]:
            if self.cache.lengths[seq]:
                raise not_empty(seq)
            self._adapters[seq] = adapter

    def adapter_of(self, seq: int) -> str | None:
        """See ``Session.adapter_of``."""
        self._check_slots([seq])
        return self._adapters[seq]

    def fork(self, seq: int, slots: Sequence[int] | None = None) -> int:
        """See ``Session.fork``.

        The two share the blocks of keys and values that they have so far. Nothing is copied until one of them writes
        to a block that is not full: then it copies the positions in that block, fewer than 64. At GPT-J-6B's width in
        float16 these are 29 MB at most, and 870 MB for 1900 tokens are shared.
        """
        cache, (seq,) = self.cache, self._check_slots([seq]).tolist()
        asked = self._check_slots(np.arange(len(cache.lengths)) if slots is None else slots).tolist()
        target = next((slot for slot in asked if slot != seq and not cache.lengths[slot]), None)
        if target is None:
            raise no_empty_slot(asked)
        cache.fork(seq, target)
        self._adapters[target] = self._adapters[seq]
        return target

    def export(self, seq: int, start: int, stop: int) -> tuple[Any, int]:
        """See ``Session.export``."""
        self._check_slots([seq])
        cache = self.cache
        if start % LANES or stop % LANES or not 0 <= start < stop <= cache.lengths[seq] or cache.prefix_lens[seq]:
            raise GenerationError("cannot be exported", where="positions", got=f"{start} to {stop}")
        k, v = cache.exported(seq, start, stop)
        return (k, v), k.nbytes + v.nbytes

    def adopt(self, seq: int, ids: Sequence[int], contents: Sequence[Any]) -> None:
        """See ``Session.adopt``."""
        self._check_slots([seq])
        tokens = check_ids(ids, self._runtime.config)
        self._check_room(len(tokens))
        if self.cache.lengths[seq]:
            raise not_empty(seq)
        self.cache.adopt(seq, tokens, contents)

    def save(self, path: str | os.PathLike[str], seq: int = 0) -> None:
        """See ``Session.save``."""
        self._check_slots([seq])
        cache, engine = self.cache, self._engine_of(seq)
        ids, prefix_len = cache.ids[seq, : cache.lengths[seq]], int(cache.prefix_lens[seq])
        saved.save(path, engine.identity(), ids, prefix_len, cache, seq, engine.digests)

    def load(self, path: str | os.PathLike[str], seq: int = 0, ids: Sequence[int] | None = None) -> list[int]:
        """See ``Session.load``."""
        self._check_slots([seq])
        cache, engine = self.cache, self._engine_of(seq)
        wanted = None if ids is None else np.array(ids, np.int64)
        header = saved.read_header(path, engine.identity())
        if cache.lengths[seq]:
            raise not_empty(seq)
        room = {"n_vocab": engine.config.n_vocab, "capacity": cache.capacity}
        try:
            found = saved.load(header, cache, seq, engine.digests, **room, wanted=wanted)
        except BaseException:
            cache.truncate(seq, 0)  # layers that were read before the fault have taken blocks
            raise
        cache.prefix_lens[seq] = header.prefix_len if len(found) else 0
        cache.hold(seq, 0, found)
        loaded: list[int] = found.tolist()
        return loaded

    def release(self, seq: int) -> None:
        """See ``Session.release``."""
        self.truncate(seq, 0)

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """See ``Session.prefill``."""
        return self.feed(seq, ids, prefix_len, anew=True)

    def feed(
        self,
        seq: int,
        ids: Sequence[int] | np.ndarray,
        prefix_len: int = 0,
        *,
        anew: bool = False,
        every_row: bool = False,
        rows_per_pass: int = PREFILL_ROWS,
    ) -> np.ndarray:
        """Append tokens to a sequence, some rows at a time. -> logits of its last row [v], or [t, v] with ``every_row``

        ``anew`` empties the sequence first. A prefix sees all of itself, so it must begin an empty sequence, and goes
        through the model in one piece.
        """
        tokens = check_ids(ids, self._runtime.config)
        prefix_len = check_prefix(prefix_len, len(tokens), self._runtime.config)
        self._check_slots([seq])
        held = 0 if anew else int(self.cache.lengths[seq])
        if prefix_len and held:
            raise GenerationError("a prefix must begin its sequence", where="prefix_len", got=prefix_len)
        self._check_room(held + len(tokens))
        if anew:
            self.release(seq)
        cuts = [0, *range(max(rows_per_pass, prefix_len), len(tokens), rows_per_pass), len(tokens)]
        logits = [
            self.step([(seq, tokens[start:stop], 0 if start else prefix_len)], [stop - start if every_row else 1])
            for start, stop in pairwise(cuts)
        ]
        return np.concatenate(logits) if every_row else logits[-1][0]

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See ``Session.decode``."""
        tokens = check_tokens(ids, self._runtime.config)
        if len(tokens) != len(seqs):
            raise GenerationError("not one token a sequence", where="ids", got=len(tokens), wanted=len(seqs))
        return self.step([(seq, tokens[i : i + 1], 0) for i, seq in enumerate(seqs)])

    def extend(self, seq: int, ids: Sequence[int]) -> np.ndarray:
        """See ``Session.extend``."""
        return self.feed(seq, ids, every_row=True)

    def truncate(self, seq: int, n: int) -> None:
        """See ``Session.truncate``. Keys and values of the remaining tokens are kept."""
        self._check_slots([seq])
        cache = self.cache
        n = check_cut(n, int(cache.lengths[seq]), int(cache.prefix_lens[seq]))
        cache.truncate(seq, n)

    def _engine_of(self, seq: int) -> Packed:
        """The engine that computes a slot's sequence."""
        adapter = self._adapters[seq]
        return self._runtime if adapter is None else self._runtime.adapters[adapter]

    def _pass(self, batch: Batch, wanted: np.ndarray, groups: Groups) -> np.ndarray:
        """Logits of the rows ``wanted``, in ascending order; the batch's last row must be among them."""
        self._runtime.check_files()
        n, tables = len(batch.ids), self._runtime.tables(int(batch.positions.max()) + 1)
        if tables is not self._tables:
            self._tables = tables
            self._recorded.clear()
        if n > self._buffers.n_rows:
            # What no pass has used yet takes no memory, and buffers that grow again would be new memory once more.
            most = min(PREFILL_ROWS, self.cache.capacity * len(self.cache.lengths))
            self._buffers = self._new_buffers(max(n, most))
            self._recorded.clear()
        first = n - len(wanted)
        if first and (n > MOST_ROWS or len(wanted) == 1):  # short passes are recorded for the last row or for all
            batch = batch.with_logit_rows(slice(first, n) if wanted[0] == first else wanted)
        logits = self._compute(batch, groups) if n > MOST_ROWS else self._recorded_pass(batch, groups).run(batch)
        if batch.for_logits is None and first:
            logits = logits[wanted]
        self.cache.check_overflow(logits, batch.blocks, batch.offsets)
        return logits

    def _recorded_pass(self, batch: Batch, groups: Groups) -> RecordedPass:
        kind = len(batch.ids), len(batch.tiles), batch.for_logits is None, forced_isa(), groups
        if kind not in self._recorded:
            mixed = [other for other in self._recorded if other[-1]]
            if groups and len(mixed) >= MOST_RECORDED:
                del self._recorded[mixed[0]]
            self._recorded[kind] = RecordedPass(
                lambda batch, program: self._compute(batch, groups, program), batch, self._runtime.threads
            )
        return self._recorded[kind]

    def _compute(self, batch: Batch, groups: Groups, program: Program | None = None) -> np.ndarray:
        engine = self._runtime
        params, for_logits = engine.params, None
        if groups:
            assert self._mixer is not None
            params = self._mixer.params(groups)
            for_logits = None if batch.logit_rows is None else self._mixer.params(groups, batch.logit_rows)
        to, config = self._buffers, engine.config
        return engine.family.forward(
            params, config, batch, self.cache, self._tables, to, program=program, params_for_logits=for_logits
        )

    def _check_slots(self, seqs: Sequence[int] | np.ndarray) -> np.ndarray:
        return check_slots(seqs, len(self.cache.lengths))

    def _check_room(self, n_positions: int) -> None:
        if n_positions > self.cache.capacity:
            raise GenerationError(
                "the sequence is full",
                got=f"{n_positions} positions",
                wanted=f"at most {self.cache.capacity}",
                fix="ask for a session of more capacity, up to n_ctx",
            )

    def _new_buffers(self, n_rows: int) -> Buffers:
        return Buffers.of(self._runtime.config, n_rows, self.cache.padded_capacity, self._runtime.threads)
