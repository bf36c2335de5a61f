"""Recording: what is asked for and nothing else, the same from both engines, and refused where memory is short."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt import ModelConfig
from refgpt._common import memory as machine
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import Recorder, forward, tap_names, tap_shapes
from refgpt.tracing import memory, record, trace_bytes
from refgpt.tracing.places import find_indices
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import CLOSE, CONFIG, ENGINES, IDS, ORACLE, PARAMS, RUNTIME, Spelling, as_model

N = len(IDS)
NAMES = tap_names(CONFIG)


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def test_everything_is_what_the_spec_shows(engine):
    recorder = Recorder()
    forward(PARAMS, CONFIG, IDS, 3, tap=recorder)
    trace = record(engine, IDS, 3)
    assert list(trace) == NAMES
    for name, want in recorder.trace.items():
        assert np.abs(trace[name] - want).max() <= CLOSE, name
    assert {name: x.shape for name, x in trace.items()} == tap_shapes(CONFIG, N)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("blocks.*.pattern", ["blocks.0.pattern", "blocks.1.pattern"]),
        ("embed", ["embed"]),
        (["blocks.1.q", "embed", "blocks.1.q"], ["embed", "blocks.1.q"]),
        (["blocks.1.mlp_*", "logits"], ["blocks.1.mlp_pre", "blocks.1.mlp_post", "blocks.1.mlp_out", "logits"]),
        ("blocks.[1-9].?", ["blocks.1.q", "blocks.1.k", "blocks.1.v", "blocks.1.z"]),
        (np.array(["ln_final"]), ["ln_final"]),
        ([], []),
    ],
)
def test_names_are_patterns(engine, asked, found):
    trace, everything = record(engine, IDS, 2, asked), record(engine, IDS, 2)
    assert list(trace) == found
    assert all((trace[name] == everything[name]).all() for name in found)


@pytest.mark.parametrize("asked", [-1, 2, [0], [5, 0, -2], slice(-3, None), slice(None, None, 2), np.array([1, 1])])
def test_positions_keep_rows_of_the_query_axis(engine, asked):
    places = np.arange(N)[asked if isinstance(asked, slice) else np.atleast_1d(asked)]
    everything, some = record(engine, IDS, 2), record(engine, IDS, 2, positions=asked)
    for name in NAMES:
        want = everything[name][:, places] if name.endswith("pattern") else everything[name][places]
        assert some[name].shape == want.shape and (some[name] == want).all(), name


def test_places_count_from_the_beginning():
    assert find_indices([-1, 2, -7], N, "positions").tolist() == [6, 2, 0]
    assert find_indices(slice(None, None, -3), N, "positions").tolist() == [6, 3, 0]
    assert find_indices(None, N, "positions") is None


def test_a_text_is_encoded():
    model = as_model(RUNTIME, Spelling())
    assert (record(model, "hda", names="logits")["logits"] == RUNTIME.logits([7, 3, 0])).all()
    for without in (RUNTIME, as_model(RUNTIME)):
        with pytest.raises(GenerationError, match="ids: is a text, and there is no tokenizer"):
            record(without, "hda")


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_default_model_traces_a_text(backend):
    model = refgpt.load(backend=backend)
    ids = model.tokenizer.encode("Once upon a time")
    trace = model.trace("Once upon a time", names=["blocks.*.pattern", "logits"], positions=-1)
    assert list(trace) == [*(f"blocks.{i}.pattern" for i in range(6)), "logits"]
    assert trace["blocks.5.pattern"].shape == (4, 1, len(ids))
    assert (trace["logits"] == model.logits(ids)[-1:]).all()
    assert model.trace(ids, len(ids), "blocks.0.pattern")["blocks.0.pattern"][:, 0].min() > 0


# ---- what is not asked for costs nothing -----------------------------------------------------------------------------


class Counts:
    """An engine that notes what its tap is shown."""

    def __init__(self, engine):
        self.counted, self.config, self.shown = engine, engine.config, []

    def logits(self, ids, prefix_len, tap):
        def noting(name, value):
            self.shown.append(name)
            return tap(name, value)

        noting.names = tap.names
        return self.counted.logits(ids, prefix_len, noting)


def test_the_runtime_shows_only_what_is_asked_for():
    engine = Counts(RUNTIME)
    record(engine, IDS, names=["blocks.0.z", "blocks.1.attn_out"], patch={"blocks.1.q": lambda q: q})
    assert engine.shown == ["blocks.0.z", "blocks.1.q", "blocks.1.attn_out"]


def test_a_pass_ends_with_the_last_activation_that_is_wanted():
    engine = Counts(ORACLE)
    record(engine, IDS, names=["blocks.0.z", "embed"])
    assert engine.shown == NAMES[: NAMES.index("blocks.0.z") + 1]


@pytest.mark.parametrize("names", ["blocks.1.resid_post", "blocks.1.pattern"])
def test_patterns_are_computed_into_memory_only_if_asked_for(monkeypatch, names):
    from refgpt.runtime import attend

    made, room = [], attend._room_for_pattern
    monkeypatch.setattr(attend, "_room_for_pattern", lambda q: made.append(len(q)) or room(q))
    record(RUNTIME, IDS, names=names)
    assert len(made) == names.endswith("pattern")
    RUNTIME.logits(IDS)
    assert len(made) == names.endswith("pattern")


def test_what_is_recorded_does_not_depend_on_what_else_is():
    alone = {name: record(RUNTIME, IDS, 3, name)[name] for name in NAMES}
    together = record(RUNTIME, IDS, 3)
    assert all((alone[name] == together[name]).all() for name in NAMES)


# ---- errors ----------------------------------------------------------------------------------------------------------


class Never:
    """An engine that must not run."""

    config, kv_dtype = CONFIG, "f32"

    def logits(self, ids, prefix_len, tap):
        raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"names": ["blocks.2.q", "embed", "blocks.*.x"]},
            r"names: there is no such activation; got blocks\.\*\.x",
        ),
        ({"names": "q"}, "no such activation; got q; wanted names of"),
        ({"names": [3]}, "names: is no name; got 3"),
        ({"positions": N}, "positions: cannot be used; got 7; wanted a whole number from -7 to 6"),
        ({"positions": [0, -8]}, "positions: cannot be used; got -8"),
        ({"positions": [0.5]}, r"positions: cannot be used; got 0\.5"),
        ({"positions": True}, "positions: cannot be used; got True"),
        ({"positions": "last"}, "positions: cannot be used; got 'last'"),
        ({"positions": [[0], [1, 2]]}, "positions: cannot be used"),
        ({"positions": slice(5, 2)}, r"positions: selects nothing; got slice\(5, 2, None\); wanted at least one of 7"),
        ({"positions": []}, "positions: selects nothing"),
        ({"positions": slice(0, 3, 0)}, "positions: is no slice"),
        ({"positions": slice("a")}, "positions: is no slice"),
        ({"prefix_len": 8}, "prefix_len: cannot be used; got 8"),
        ({"patch": {"blocks.0.w": 3}}, r"patch: there is no such activation; got blocks\.0\.w"),
        ({"patch": {"blocks.0.q": 3}}, r"blocks\.0\.q: cannot be used as a patch; got int"),
        ({"patch": ["blocks.0.q"]}, "patch: cannot be used; got str"),
        ({"patch": {"blocks.0.q": np.zeros(3)}}, r"blocks\.0\.q: a patch must have the shape of the activation"),
    ],
)
def test_mistakes_are_named_before_anything_runs(arguments, said):
    with pytest.raises(RefgptError, match=said):
        record(Never(), IDS, **arguments)


@pytest.mark.parametrize("ids", [[], [61], [0] * 65, "a"])
def test_ids_are_checked(ids):
    with pytest.raises(GenerationError, match="ids"):
        record(Never(), ids)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [RUNTIME, ORACLE, SpecEngine(PARAMS, CONFIG)], ids=["runtime", "f64", "f32"])
@pytest.mark.parametrize("positions", [None, [0, -1]])
def test_bytes_are_those_of_the_arrays(engine, positions):
    trace = record(engine, IDS, 0, None, positions)
    itemsize = trace["embed"].itemsize
    said = trace_bytes(CONFIG, N, NAMES, None if positions is None else len(positions), itemsize)
    assert said == {name: value.nbytes for name, value in trace.items()}


def test_a_whole_trace_of_6b_would_not_fit(monkeypatch):
    """A full context, by hand: ten activations of d_model a layer, two of d_ff, a pattern; embeddings and the end."""
    config, n = ModelConfig(), 2048
    by_hand = 4 * n * (28 * (10 * 4096 + 2 * 16384 + 16 * 2048) + 2 * 4096 + 50400)
    assert sum(trace_bytes(config, n, tap_names(config)).values()) == by_hand
    monkeypatch.setattr(memory, "available_memory", lambda: 16 * 10**9)
    engine = SimpleNamespace(config=config, kv_dtype="f32", logits=Never().logits)
    with pytest.raises(RefgptError) as refusal:
        record(engine, [0] * n)
    said = str(refusal.value)
    assert "this takes more memory than there is; got 26.1 GB (367 activations, 2048 of 2048 rows" in said
    assert "most of it for pattern 7.52 GB, mlp_pre 3.76 GB, mlp_post 3.76 GB" in said
    assert "at most the 16 GB that can be had now" in said and "positions=-1" in said
    with pytest.raises(AssertionError, match="it ran"):
        record(engine, [0] * n, names="blocks.*.resid_post")
    with pytest.raises(AssertionError, match="it ran"):
        record(engine, [0] * n, positions=-1)


def test_the_limit_is_what_is_kept_and_what_passes_by(monkeypatch):
    kept, passing = 2 * N * 32 * 4, memory.IN_PASSING * N * 32 * 4
    for free, fits in ((kept + passing, True), (kept + passing - 1, False)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        if fits:
            record(RUNTIME, IDS, names="blocks.*.resid_post")
        else:
            with pytest.raises(RefgptError, match="more memory than there is"):
                record(RUNTIME, IDS, names="blocks.*.resid_post")


def test_memory_is_read_where_the_system_tells_it(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:    1234567 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    assert memory.available_memory() == 1234567 * 1024
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__, raising=False)
    assert memory.available_memory() == 4096000

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(machine.os, "sysconf", unknown, raising=False)
    assert memory.available_memory() is None
    assert list(record(RUNTIME, IDS, names="embed")) == ["embed"]  # where nothing is known, nothing is refused


def test_shapes_of_a_model_whose_sizes_all_differ():
    config = tiny_config(n_head=4, d_model=36, d_ff=50, n_vocab=97)
    params = random_params(config, 1)
    trace = record(Runtime(params, config, threads=1), [1, 2, 3, 4, 5])
    assert {name: value.shape for name, value in trace.items()} == tap_shapes(config, 5)
    assert sum(map(prod, tap_shapes(config, 5).values())) == sum(value.size for value in trace.values())
