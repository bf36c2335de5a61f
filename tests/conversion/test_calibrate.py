"""Calibrated conversion: closer outputs in the same format, the same bits after any interruption, and clear errors."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError, DataError, RefgptError
from refgpt._open import open_model
from refgpt.checkpoints import Checkpoint
from refgpt.conversion import calibrate, convert
from refgpt.kernels import force_isa
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import Panels
from refgpt.runtime import Runtime
from tests.helpers.families import VARIANTS
from tests.helpers.small_tokenizers import Letters
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.work import HANGS

BOOK = Path(__file__).parents[1] / "data" / "oz.txt"
CONFIG = VARIANTS["gptj"]
N_TOKENS = 256


def made(config=CONFIG, mask: str = "causal", **changes) -> Checkpoint:
    """A checkpoint that never was in a file."""
    parts = {"path": Path("made"), "format": "made", "family": config.model_type, "config": config, "mask": mask}
    parts |= {"params": random_params(config, 5), "mask_source": "", "tensors": ()}
    return Checkpoint(**parts | changes)


def letters(n: int, seed: int) -> np.ndarray:
    """Ids that follow one another, mostly."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.7, 1, rng.integers(0, 61, n)).cumsum() % 61


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text"
    path.write_text("".join(chr(0x100 + n) for n in letters(1024, 2)), encoding="utf-8")
    return path


def calibrated(source: Checkpoint, text: Path, out: Path, dtype: str = "q4", **options) -> Path:
    convert(source, Letters(61), out, dtype=dtype, calibrate=text, **{"calibrate_tokens": N_TOKENS} | options)
    return out


def weights(out: Path) -> bytes:
    return (out / "packed.safetensors").read_bytes()


def divergence(want: np.ndarray, got: np.ndarray) -> float:
    """Mean KL of rows of logits, in nats."""
    rows = [z.astype(np.float64) - z.max(1, keepdims=True) for z in (want, got)]
    p, q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in rows)
    return float((np.exp(p) * (p - q)).sum(1).mean())


# ---- what it is good for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["q4", "q3"])
def test_a_text_that_was_not_calibrated_with_is_closer_too(dtype, tmp_path):
    source, tokenizer = open_model(None)
    ids = tokenizer.encode(BOOK.read_text(encoding="utf-8"))
    learned = tmp_path / "learned.txt"
    learned.write_text(tokenizer.decode(ids[:4000]), encoding="utf-8")
    convert(source, tokenizer, tmp_path / "out", dtype=dtype, calibrate=[learned], calibrate_tokens=3584)
    held_out = ids[-1024:]
    want = refgpt.load(dtype="f32")
    plain, got = refgpt.load(dtype=dtype), refgpt.load(tmp_path / "out")
    windows = [held_out[i : i + 512] for i in (0, 512)]
    found = [np.mean([divergence(want.logits(ids), model.logits(ids)) for ids in windows]) for model in (plain, got)]
    assert found[1] < 0.7 * found[0]
    assert got.verify(windows[0][:64]).first_broken is None
    assert {leaf.kind for _, leaf in got.params().items() if isinstance(leaf, Panels)} == {"q8", dtype}


@pytest.mark.parametrize(("name", "dtype"), [*((name, "q4") for name in VARIANTS), (next(iter(VARIANTS)), "q3")])
def test_every_family(name, dtype, text, tmp_path):
    config = VARIANTS[name]
    source = made(config)
    out = calibrated(source, text, tmp_path / "out", dtype, calibrate_tokens=1024)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text"]
    got, _ = open_model(out)
    plain = Runtime(source.params, config, dtype=dtype)
    model, want = Runtime(got.params, config), Runtime(source.params, config)
    windows = letters(8 * 64, 3).reshape(8, 64)
    errors = [np.mean([divergence(want.logits(w), engine.logits(w)) for w in windows]) for engine in (plain, model)]
    assert errors[1] < 0.85 * errors[0]
    for (key, a), (_, b) in zip(model.params.items(), plain.params.items(), strict=True):
        assert getattr(a, "kind", None) == getattr(b, "kind", None)
        if getattr(a, "kind", None) != dtype:  # embeddings, tied heads and vectors are those of any conversion
            assert np.array_equal(getattr(a, "data", a), getattr(b, "data", b)), key


@pytest.mark.parametrize(("to", "dtype"), [("hf", "f16"), ("gguf", None), ("refgpt", "q8"), ("refgpt", "f32")])
def test_from_other_formats(to, dtype, text, tmp_path):
    convert(made(), None, tmp_path / "source", to=to, dtype=dtype)
    source, _ = open_model(tmp_path / "source")
    out = calibrated(source, text, tmp_path / "out")
    same = calibrated(made(params=source.params.map(lambda _, leaf: widen(leaf))), text, tmp_path / "same")
    for (name, a), (_, b) in zip(*(open_model(path)[0].params.items() for path in (out, same)), strict=True):
        assert widen(a).tobytes() == widen(b).tobytes(), name


def test_inputs_come_from_matrices_that_are_rounded_already(text, tmp_path):
    """Rounded otherwise, an earlier matrix changes all later ones."""
    first = tmp_path / "first"
    calibrated(made(), text, first)
    params = made().params
    changed = dataclasses.replace(params.blocks[0], wq=params.blocks[0].wq * np.float32(1.5))
    other = made(params=dataclasses.replace(params, blocks=(changed, *params.blocks[1:])))
    second = calibrated(other, text, tmp_path / "second")
    a, b = (dict(open_model(out)[0].params.items()) for out in (first, second))
    differ = {
        name for name in a if getattr(a[name], "kind", "") == "q4" and a[name].data.tobytes() != b[name].data.tobytes()
    }
    of_first_input = {f"blocks.0.{name}" for name in ("wk", "wv", "w_in")}
    matrices = {name for name in a if getattr(a[name], "kind", "") == "q4"}
    assert differ >= {"blocks.0.wq", "blocks.0.wo", "blocks.1.wq", "blocks.1.w_out", "w_head"}
    assert not differ & of_first_input and differ < matrices


def test_the_prefix_mask_counts(text, tmp_path):
    outs = [calibrated(made(mask=mask), text, tmp_path / mask) for mask in ("causal", "prefix")]
    assert weights(outs[0]) != weights(outs[1])


# ---- the same bits --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[str]]:
    """A text, and the names of matrices in the order in which they are rounded; the conversion lies beside it."""
    directory = tmp_path_factory.mktemp("whole")
    text = directory / "text"
    text.write_text("".join(chr(0x100 + n * n % 61) for n in range(700)), encoding="utf-8")
    names: list[str] = []
    calibrated(made(), text, directory / "out", calibrating=lambda name, n_done, n_total: names.append(name))
    return text, names


def test_threads_and_instruction_sets_change_no_bit(whole, tmp_path, monkeypatch):
    want = weights(whole[0].parent / "out")
    monkeypatch.setenv("REFGPT_THREADS", "1")
    assert weights(calibrated(made(), whole[0], tmp_path / "one")) == want
    monkeypatch.setenv("REFGPT_THREADS", "3")
    with force_isa("scalar"):
        assert weights(calibrated(made(), whole[0], tmp_path / "scalar")) == want


def test_rows_that_are_rounded_together_change_no_bit(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "ROWS", 16)
    assert weights(calibrated(made(), whole[0], tmp_path / "out")) == weights(whole[0].parent / "out")


def test_progress_counts_all_weights(whole, tmp_path):
    seen = []
    calibrated(made(), whole[0], tmp_path / "out", calibrating=lambda *counts: seen.append(counts))
    assert [name for name, _, _ in seen] == whole[1] and whole[1][0] == "blocks.0.wq" and whole[1][-1] == "w_head"
    n_total = sum(leaf.size for name, leaf in made().params.items() if leaf.ndim == 2 and name != "wte")
    assert seen[-1][1:] == (n_total, n_total) and [n for _, n, _ in seen] == sorted(n for _, n, _ in seen)


@pytest.mark.parametrize("stop", range(13))
def test_an_interrupted_conversion_goes_on_where_it_was(stop, whole, tmp_path, caplog):
    text, names = whole

    def interrupt(name: str, n_done: int, n_total: int) -> None:
        if name == names[stop]:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        calibrated(made(), text, out, calibrating=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".out.calibration"] and "goes on there" in caplog.text
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.calibration").iterdir()}
    assert {name for name in kept if "w" in name} == set(names[: stop + 1])
    again = []

    def stop_again(name: str, n_done: int, n_total: int) -> None:
        again.append(name)
        if name == names[min(stop + 2, 12)]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(made(), text, out, calibrating=stop_again)
    for name, when in kept.items():
        if "w" in name:
            assert (tmp_path / ".out.calibration" / name).stat().st_mtime_ns == when, "it was rounded again"
    assert weights(calibrated(made(), text, out)) == weights(text.parent / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("damage", ["cut", "changed", "no states", "damaged states", "no matrix"])
def test_damaged_remains_are_computed_again(damage, whole, tmp_path):
    text, names = whole

    def interrupt(name: str, n_done: int, n_total: int) -> None:
        if name == names[9]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(made(), text, tmp_path / "out", calibrating=interrupt)
    state = tmp_path / ".out.calibration"
    target = state / ("states.1" if "states" in damage else names[2])
    raw = target.read_bytes()
    if damage.startswith("no"):
        target.unlink()
    else:
        target.write_bytes(raw[:-1] if damage == "cut" else raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert weights(calibrated(made(), text, tmp_path / "out")) == weights(text.parent / "out")


@pytest.mark.parametrize("left", ["states.1", "blocks.0.wq"])
def test_remains_that_no_run_claims_are_not_used(left, whole, tmp_path):
    """Those of a directory that was removed in part, by a process that was killed then."""

    def interrupt(name: str, n_done: int, n_total: int) -> None:
        if name == whole[1][9]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(made(params=random_params(CONFIG, 6)), whole[0], tmp_path / "out", calibrating=interrupt)
    for path in (tmp_path / ".out.calibration").iterdir():
        if path.name not in (left, *(whole[1][:6] if left == "states.1" else ())):
            path.unlink()
    assert weights(calibrated(made(), whole[0], tmp_path / "out")) == weights(whole[0].parent / "out")
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.conversion.test_calibrate import calibrated, made

def kill(name, n_done, n_total):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

calibrated(made(), Path(sys.argv[1]), Path(sys.argv[2]), calibrating=kill)
"""


def test_a_killed_conversion_goes_on_where_it_was(whole, tmp_path):
    text, names = whole
    command = [sys.executable, "-c", KILLED, str(text), str(tmp_path / "out"), names[7]]
    killed = subprocess.run(command, timeout=HANGS, check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    seen: list[str] = []
    calibrated(made(), text, tmp_path / "out", calibrating=lambda name, *_: seen.append(name))
    assert weights(tmp_path / "out") == weights(text.parent / "out") and seen[0] == "blocks.1.wq"
    assert os.listdir(tmp_path) == ["out"]


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"source": made(params=random_params(CONFIG, 6))},
        {"source": made(mask="prefix")},
        {"calibrate_tokens": N_TOKENS - 64},
    ],
)
def test_remains_of_another_run_are_refused(other, whole, tmp_path, caplog):
    def interrupt(name: str, n_done: int, n_total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(made(), whole[0], tmp_path / "out", calibrating=interrupt)
    caplog.clear()
    options = {"source": made(), "text": whole[0], "out": tmp_path / "out"} | other
    with pytest.raises(CheckpointError, match=r"\.out\.calibration: holds the interrupted calibration of another"):
        calibrated(**options)
    assert "goes on there" not in caplog.text
    run = tmp_path / ".out.calibration" / "run.json"
    known = run.read_text()
    run.write_text(known[:20])
    with pytest.raises(CheckpointError, match="calibration is damaged; remove that directory"):
        calibrated(**options)
    run.write_text(known)
    assert weights(calibrated(made(), whole[0], tmp_path / "out")) == weights(whole[0].parent / "out")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_that_has_the_name_of_the_state(kind, whole, tmp_path):
    state = tmp_path / ".out.calibration"
    if kind == "file":
        state.write_text("mine")
    else:
        state.symlink_to(whole[0].parent)
    with pytest.raises(CheckpointError, match=r"\.out\.calibration: .* something else has it; .* move it away"):
        calibrated(made(), whole[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [state] and (kind == "link" or state.read_text() == "mine")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "q8"}, "dtype: only 4 and 3 bits are calibrated; got q8; wanted q4 or q3"),
        ({"dtype": None}, "only 4 and 3 bits"),
        ({"calibrate": []}, "calibrate: cannot be used"),
        ({"calibrate": 3}, "calibrate: cannot be used"),
        ({"calibrate": [None]}, "calibrate: cannot be used"),
        ({"calibrate": "absent.txt"}, "absent.txt: there is no such file"),
        ({"calibrate_tokens": 1}, "calibrate_tokens: cannot be used"),
        ({"calibrate_tokens": 64.0}, "calibrate_tokens: cannot be used"),
        ({"calibrate_tokens": 701}, "too little text to calibrate with; got 700 tokens; wanted 701"),
        ({"tokenizer": None}, "calibrating reads texts, and this model has no tokenizer"),
        ({"source": made(tiny_config(n_vocab=60))}, "text: the tokenizer gives ids .*; got 60; wanted 0 to 59"),
    ],
)
def test_what_cannot_be_calibrated_with(options, match, whole, tmp_path):
    given = {"source": made(), "tokenizer": Letters(61), "dtype": "q4"}
    given |= {"calibrate": [whole[0]], "calibrate_tokens": N_TOKENS} | options
    with pytest.raises(RefgptError, match=match):
        convert(destination=tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_no_text(tmp_path):
    (tmp_path / "text").write_bytes(b"abc\xff\xfe")
    with pytest.raises(DataError, match=r"text: is not UTF-8 text; got byte 3"):
        calibrated(made(), tmp_path / "text", tmp_path / "out")


def test_texts_are_read_together_and_spread_evenly(tmp_path):
    from refgpt.conversion.calibration_text import calibration_ids

    for name, first in (("a", 0), ("b", 30)):
        (tmp_path / name).write_text("".join(chr(0x100 + first + i % 30) for i in range(100)), encoding="utf-8")
    ids = calibration_ids(made(), Letters(61), [tmp_path / "a", tmp_path / "b"], 128)
    assert ids.shape == (2, 64) and ids[0, 0] == 0 and ids[1, 0] == 30 and (ids[0] < 30).all()
    assert calibration_ids(made(), Letters(61), str(tmp_path / "a"), 7).shape == (1, 7)
    assert calibration_ids(made(), Letters(61), tmp_path / "a", 70).shape == (1, 64)


@pytest.mark.parametrize(("bits", "dtype"), [(4, "q4"), (3, "q3"), (3, "q4")])
def test_a_model_in_as_few_bits_is_refused(bits, dtype, text, tmp_path):
    convert(made(), None, tmp_path / "source", dtype=f"q{bits}")
    source, _ = open_model(tmp_path / "source")
    with pytest.raises(CheckpointError, match=rf"blocks\.0\.wq': has {bits} bits already"):
        calibrated(source, text, tmp_path / "out", dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "text"]


@pytest.mark.parametrize(("name", "number"), [("w_head", np.nan), ("blocks.1.w_out", np.inf), ("blocks.0.wq", 1e6)])
def test_a_weight_that_cannot_be_rounded_is_found_before_anything_is_computed(name, number, text, tmp_path):
    params = made().params
    dict(params.items())[name][3, 5] = number
    seen: list[str] = []
    with pytest.raises(CheckpointError):
        calibrated(made(params=params), text, tmp_path / "out", calibrating=lambda *one: seen.append(one))
    assert not seen and [path.name for path in tmp_path.iterdir()] == ["text"]


def test_activations_that_are_not_finite_are_an_error(text, tmp_path):
    params = made().params
    params.blocks[0].b_in[:] = 3e38
    with pytest.raises(CheckpointError, match="activations on these texts are infinite"):
        calibrated(made(params=params), text, tmp_path / "out")


def test_a_destination_that_is_there_is_refused_first(text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("")
    with pytest.raises(CheckpointError, match="not empty"):
        calibrated(made(), tmp_path / "absent", tmp_path / "out")


def test_two_at_once_are_refused(text, tmp_path):
    def again(name: str, n_done: int, n_total: int) -> None:
        with pytest.raises(CheckpointError, match="another process is calibrating it"):
            calibrated(made(), text, tmp_path / "out")

    calibrated(made(), text, tmp_path / "out", calibrating=again)


def test_too_little_disk(text, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match="no room on the disk"):
        calibrated(made(), text, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_the_command(run, tmp_path):
    learned = tmp_path / "learned.txt"
    learned.write_text("Once upon a time there was a king. " * 20, encoding="utf-8")
    source = made(tiny_config(n_vocab=61))
    convert(source, None, tmp_path / "source", to="hf")
    from tests.helpers.model_files import write_tokenizer

    write_tokenizer(tmp_path / "source")
    done = run(
        "convert",
        tmp_path / "source",
        tmp_path / "out",
        "--dtype",
        "q4",
        "--calibrate",
        learned,
        "--calibrate-tokens",
        128,
    )
    assert done.code == 0 and "out: " in done.out and not done.err
    failed = run("convert", tmp_path / "source", tmp_path / "other", "--dtype", "q8", "--calibrate", learned)
    assert failed.code == 1 and "only 4 and 3 bits are calibrated" in failed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learned.txt", "out", "source"]
