"""A sequence on disk goes on with the same bits, and what is no such file is refused before it is believed."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from refgpt import GenerationError
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.runtime import Runtime, saved
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.families import VARIANTS
from tests.helpers.runtime_models import LONG, PROMPT, runtime
from tests.helpers.tiny import random_params, tiny_config

NEXT = [5, 7, 11]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prompt.state"


def begun(engine, ids=PROMPT, prefix_len=0, seq=0, n_seqs=2, capacity=260):
    session = engine.session(n_seqs, capacity)
    session.prefill(seq, ids, prefix_len)
    return session


@pytest.mark.parametrize("dtype, kv_dtype", [("f32", "f32"), ("q4", "f16"), ("f32", "q8")])
@pytest.mark.parametrize("n, prefix_len", [(1, 0), (16, 0), (17, 5), (200, 0), (200, 200)])
def test_a_saved_sequence_goes_on_with_the_same_bits(path, dtype, kv_dtype, n, prefix_len):
    session = begun(runtime(dtype, kv_dtype), PROMPT[:n], prefix_len, seq=1)
    session.save(path, 1)
    want = session.extend(1, NEXT)
    other = runtime(dtype, kv_dtype, threads=1).session(3, 230)
    other.prefill(2, PROMPT[::-1][:50])
    other.release(2)  # what the slot held before does not matter
    assert other.load(path, 2) == PROMPT[:n].tolist()
    assert np.array_equal(other.extend(2, NEXT), want)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_file_holds_nothing_of_what_the_slot_held_before(path, kv_dtype):
    engine = runtime("f32", kv_dtype)
    begun(engine, PROMPT[:21]).save(path)
    want, session = path.read_bytes(), begun(engine, PROMPT[::-1][:60])
    session.release(0)
    session.prefill(0, PROMPT[:21])
    session.save(path)
    assert path.read_bytes() == want


@pytest.mark.parametrize("name", VARIANTS)
def test_every_family_goes_on_with_the_same_bits(path, name):
    config = VARIANTS[name]
    engine = Runtime(random_params(config, 3), config, threads=2)
    session = begun(engine, list(range(1, 30)), capacity=60)
    session.save(path)
    other = engine.session(1, 60)
    other.load(path)
    assert np.array_equal(other.extend(0, NEXT), session.extend(0, NEXT))


def test_a_part_of_it_goes_on_too(path):
    engine = runtime()
    begun(engine).save(path)
    for n in (1, 16, 100, 200):
        want = begun(engine, PROMPT[:n]).extend(0, NEXT)
        session = engine.session(1, n + 3)
        assert session.load(path, ids=[*PROMPT[:n].tolist(), 0, 1]) == PROMPT[:n].tolist()
        assert np.array_equal(session.extend(0, NEXT), want)


def test_where_nothing_is_common_nothing_is_loaded(path):
    engine = runtime()
    begun(engine, PROMPT, 100).save(path)
    session = engine.session(1, 260)
    for ids in ([], [PROMPT[0] + 1], PROMPT[:99], PROMPT[:100]):
        assert len(session.load(path, ids=ids)) == (100 if len(ids) == 100 else 0)
    assert np.array_equal(session.extend(0, NEXT), begun(engine, PROMPT[:100], 100).extend(0, NEXT))


def test_a_forked_copy_of_a_loaded_sequence_has_its_bits(path):
    session = begun(runtime())
    session.save(path)
    want = session.extend(0, NEXT)
    other = runtime().session(2, 260)
    other.load(path)
    assert np.array_equal(other.extend(other.fork(0), NEXT), want)


def test_the_file_holds_nothing_of_other_texts(path, tmp_path):
    begun(runtime(), PROMPT[:21]).save(path)
    session = begun(runtime(), PROMPT[::-1])
    session.prefill(0, PROMPT[:21])
    session.save(tmp_path / "other.state")
    assert (tmp_path / "other.state").read_bytes() == path.read_bytes()


def test_the_spec_keeps_the_ids(path):
    engine = SpecEngine(random_params(tiny_config(), 5), tiny_config(), np.float64)
    session = begun(engine, [1, 2, 3], 3)
    session.save(path)
    other = engine.session(1, 64)
    assert other.load(path) == [1, 2, 3]
    assert np.array_equal(other.extend(0, NEXT), session.extend(0, NEXT))


def test_what_cannot_be_loaded_leaves_the_slot_empty(path):
    engine = runtime()
    session = begun(engine)
    session.save(path)
    with pytest.raises(GenerationError, match="not empty"):
        session.load(path)
    with pytest.raises(GenerationError, match=r"does not fit.*200 positions.*at most 100"):
        engine.session(1, 100).load(path)
    with pytest.raises(GenerationError, match="seq"):
        session.load(path, 2)
    with pytest.raises(GenerationError, match="nothing to save"):
        session.save(path, 1)
    with pytest.raises(GenerationError, match="cannot be written"):
        session.save(path.parent)
    with pytest.raises(FileNotFoundError):
        engine.session(1, 260).load(path.parent / "none")


@pytest.mark.parametrize(
    "other, what",
    [
        (lambda: runtime("f32", "f16"), "kv_dtype"),
        (lambda: runtime("f16"), "weights"),
        (lambda: Runtime(random_params(LONG, 12), LONG, kv_dtype="f32"), "weights"),
        (lambda: SpecEngine(random_params(LONG, 11), LONG), "backend"),
    ],
)
def test_another_model_is_refused(path, other, what):
    begun(runtime()).save(path)
    with pytest.raises(GenerationError, match=rf"another model.*got another {what}"):
        other().session(1, 260).load(path)


def test_a_damaged_file_is_refused_wherever_it_is_damaged(path, monkeypatch):
    engine = Runtime(random_params(tiny_config(), 5), tiny_config(), threads=1)
    begun(engine, [1, 2, 3], n_seqs=1, capacity=20).save(path)
    whole = path.read_bytes()
    start = saved.read_header(path).start
    session = engine.session(1, 20)
    for i in [*range(0, start, 5), *range(start, len(whole), 97), len(whole) - 1]:
        for damaged in (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :], whole[:i]):
            path.write_bytes(damaged)
            with pytest.raises(GenerationError):
                session.load(path)
            assert not session.cache.lengths[0] and not session.cache.n_blocks_used
    path.write_bytes(whole + b"\0")
    with pytest.raises(GenerationError, match="another size"):
        session.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_tokens": 10**15},
        {"n_tokens": -1},
        {"n_tokens": "3"},
        {"n_tokens": True},
        {"prefix_len": 4},
        {"checksums": 5},
        {"checksums": [1]},
        {"checksums": []},
        {"identity": []},
    ],
)
def test_a_header_that_lies_is_refused(path, changes):
    engine = Runtime(random_params(tiny_config(), 5), tiny_config(), threads=1)
    begun(engine, [1, 2, 3], capacity=20).save(path)
    raw = path.read_bytes()
    n = int.from_bytes(raw[16:24], "little")
    header = json.dumps(json.loads(raw[56 : 56 + n]) | changes).encode()
    begin = raw[:16] + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest()
    path.write_bytes(begin + header + raw[56 + n :])
    with pytest.raises(GenerationError, match=r"makes no sense|another size|does not fit"):
        engine.session(1, 20).load(path)


@pytest.mark.parametrize("raw", [b"", b"refgpt prompt 1\n", b"refgpt prompt 2\n" + 80 * b" ", b"{}" * 30])
def test_what_is_no_saved_prompt_is_refused(path, raw):
    path.write_bytes(raw)
    with pytest.raises(GenerationError, match="no saved prompt"):
        runtime().session(1, 20).load(path)
    path.write_bytes(saved.MAGIC + (1 << 40).to_bytes(8, "little") + 32 * b"x")
    with pytest.raises(GenerationError, match="far too long"):
        runtime().session(1, 20).load(path)


def test_a_file_is_replaced_when_the_new_one_is_whole(path, monkeypatch):
    session = begun(runtime())
    session.save(path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    session.truncate(0, 100)
    with monkeypatch.context() as patched, pytest.raises(GenerationError, match="No space"):
        patched.setattr(saved, "_write", fail)
        session.save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    session.save(path)
    assert len(path.read_bytes()) < len(before)
