"""Top activations over a text: the ones that a plain sort of everything finds, from files read piece by piece."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import DataError, RefgptError
from refgpt.runtime import Runtime
from refgpt.tracing import memory, neurons, record, top_activations
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import CONFIG, ENGINES, PARAMS, RUNTIME, Spelling, as_model

TEXT = "the cat sat on a mat and that is all there is to say of cats\nand of mats".replace(" ", "z").replace("\n", "y")
IDS = Spelling().encode(TEXT)
MODEL = as_model(RUNTIME, Spelling())


def by_hand(engine, layer, part, window, bos=()):
    """All activations of a text [tokens, neurons], window by window."""
    rows = []
    for start in range(0, len(IDS), window):
        ids = [*bos, *IDS[start : start + window]]
        rows += list(record(engine, ids)[f"blocks.{layer}.{part}"][len(bos) :])
    return np.array(rows)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(("layer", "part", "window"), [(0, "mlp_post", 64), (1, "mlp_pre", 10), (1, "mlp_post", 7)])
def test_a_plain_sort_of_everything_finds_the_same(kind, layer, part, window):
    found = top_activations(as_model(ENGINES[kind], Spelling()), [TEXT], layer, k=5, window=window, part=part)
    rows = by_hand(ENGINES[kind], layer, part, window)
    assert found.values.shape == found.places.shape == (80, 5) and found.n_tokens == len(TEXT) == len(rows)
    for neuron in range(80):
        order = sorted(range(len(rows)), key=lambda t, f=neuron: (-np.float32(rows[t, f]), t))[:5]
        assert found.places[neuron].tolist() == order
        assert (found.values[neuron] == rows[order, neuron].astype(np.float32)).all()


def test_contexts_are_the_tokens_around_within_the_window():
    found = top_activations(MODEL, [TEXT], 1, [3, -1], k=4, window=20)
    assert found.neurons.tolist() == [3, 79]
    for places, contexts in zip(found.places, found.contexts, strict=True):
        for place, context in zip(places.tolist(), contexts.tolist(), strict=True):
            start, stop = place // 20 * 20, min(place // 20 * 20 + 20, len(IDS))
            want = [IDS[t] if start <= t < stop else -1 for t in range(place - 12, place + 5)]
            assert context == want


def test_each_window_begins_like_a_text_and_that_token_does_not_count():
    config = tiny_config(bos_id=7)
    engine = Runtime(random_params(config, 9), config, threads=1)
    found = top_activations(as_model(engine, Spelling()), [TEXT], 0, k=len(TEXT), window=16)
    rows = by_hand(engine, 0, "mlp_post", 16, bos=[7])
    assert (np.sort(found.places, axis=1) == np.arange(len(TEXT))).all()
    assert (found.values == -np.sort(-rows.T, axis=1)).all()


def test_a_file_is_read_line_by_line_and_long_lines_in_parts(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([TEXT] * 3), encoding="utf-8")

    class Lines(Spelling):
        seen = ()

        def encode(self, text):
            self.seen += (text,)
            return super().encode(text.replace("\n", "y"))

    for n_bytes, n_pieces in ((1 << 16, 3), (16, 15)):
        monkeypatch.setattr(neurons, "PIECE_BYTES", n_bytes)
        tokenizer = Lines()
        found = top_activations(as_model(RUNTIME, tokenizer), path, 0, 5, k=2, window=32)
        pieces = [piece for piece in tokenizer.seen if piece]
        assert "".join(pieces) == path.read_text() and len(pieces) == n_pieces
        whole = top_activations(MODEL, ["y".join([TEXT] * 3)], 0, 5, k=2, window=32)
        assert (found.places == whole.places).all() and found.n_tokens == 3 * len(TEXT) + 2


def test_characters_that_are_cut_or_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(neurons, "PIECE_BYTES", 3)
    path = tmp_path / "text.txt"
    path.write_bytes("aé€b".encode() + b"\xff\xe2")
    assert "".join(neurons._lines(path, lambda n: None)) == "aé€b\ufffd\ufffd"


def test_a_text_of_fewer_tokens_than_asked_for():
    found = top_activations(MODEL, ["ab"], 0, 1, k=3)
    assert found.places.tolist()[0][2] == -1 and np.isneginf(found.values[0, 2]) and (found.contexts[0, 2] == -1).all()
    assert len(list(found.lines(Spelling()))) == 2


def test_a_bar_and_lines(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    found = top_activations(MODEL, path, 1, 0, k=1, progress=True)
    assert "reading: 100%" in capsys.readouterr().err
    place = found.places[0, 0]
    (line,) = found.lines(Spelling())
    assert f"{TEXT[max(0, place - 12) : place]}[{TEXT[place]}]{TEXT[place + 1 : place + 5]}" in line
    assert line.startswith("blocks.1 neuron     0 ")
    top_activations(MODEL, path, 1, 0, k=1)
    assert capsys.readouterr().err == ""


def test_nothing_beyond_the_layer_is_computed_and_the_text_is_not_held():
    drawn, engine = [], RUNTIME

    class Watching:
        config = CONFIG

        def logits(self, ids, prefix_len, tap):
            drawn.append((len(given), len(ids)))
            assert tap.names == {"blocks.0.mlp_post"}
            return engine.logits(ids, prefix_len, tap)

    given = []

    def stream():
        for i in range(6):
            given.append(i)
            yield "abcdefgh"

    top_activations(as_model(Watching(), Spelling()), stream(), 0, 0, window=16)
    assert drawn == [(2, 16), (4, 16), (6, 16)]


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_default_model_over_a_book(backend, tmp_path):
    model = refgpt.load(backend=backend)
    path = tmp_path / "oz.txt"
    path.write_text("The King said he would go.\nThe Queen said she would stay.\nAnd so they did.\n" * 3)
    found = top_activations(model, path, 2, [10, 20], k=3, window=24)
    lines = list(found.lines(model.tokenizer))
    assert len(lines) == 6 and all("[" in line and "\n" not in line for line in lines)
    again = top_activations(refgpt.load(), path, 2, [10, 20], k=3, window=24)
    assert np.abs(again.values - found.values).max() <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layer": 2}, "layer: cannot be used; got 2"),
        ({"neurons": 80}, "neurons: cannot be used; got 80"),
        ({"k": 0}, "k: cannot be used; got 0"),
        ({"window": 65}, "window: cannot be used; got 65; wanted a whole number from 1 to 64"),
        ({"part": "mlp_out"}, "part: cannot be used; got 'mlp_out'"),
        ({"text": "/nowhere/to/be/found.txt"}, r"found\.txt: there is no such file"),
        ({"text": []}, "text: there is no text in it"),
        ({"text": [3]}, "text: is no text; got int; wanted a path, or pieces of text"),
        ({"model": as_model(RUNTIME)}, "model: there is no tokenizer"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(RefgptError, match=said):
        top_activations(**{"model": MODEL, "text": [TEXT], "layer": 0, **arguments})


def test_more_than_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    with pytest.raises(RefgptError, match=r"more memory than there is; got 1\.\d+ GB \(100000 activations of 80 neur"):
        top_activations(MODEL, [TEXT], 0, k=100_000)
    assert PARAMS.blocks[0].w_in.shape[0] == 80


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: is not a file; got a named pipe"):
        top_activations(MODEL, tmp_path / "pipe", 0)


def test_what_a_signal_handler_raises_comes_out_as_itself(tmp_path, monkeypatch):
    """TimeoutError is an OSError, but none of the file's."""
    (tmp_path / "text").write_text("abc")

    def late(path, **_):
        raise TimeoutError("too late")

    monkeypatch.setattr(Path, "stat", late)
    with pytest.raises(TimeoutError, match="too late"):
        top_activations(MODEL, tmp_path / "text", 0)
