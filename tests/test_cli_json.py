"""``--json``: one object on standard output, with the keys that the reference names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt._open import open_model
from refgpt.cli.json_output import print_json
from refgpt.kernels import list_kernels
from refgpt.runtime import Runtime
from refgpt.runtime.cache import KVCache
from refgpt.tracing import logit_attribution, logit_lens
from tests.helpers.cli_models import CONFIG, PARAMS, write_both_ways, write_tiny
from tests.helpers.model_files import write_model, write_tokenizer

REFERENCE = (Path(__file__).parents[1] / "docs/reference/command-line.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def prefix_path(tmp_path_factory):
    return write_both_ways(tmp_path_factory.mktemp("models"))


@pytest.fixture
def result(run):
    """A function: the object that a command prints."""

    def result(*arguments, code=0):
        got = run(*arguments, "--json")
        assert got.code == code
        return json.loads(got.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return result


def documented(command):
    """The keys in a command's table in the reference."""
    section = REFERENCE.partition(f"### `refgpt {command} --json`\n")[2].partition("\n### ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}


def test_info(result, path, prefix_path):
    got = result("info", path)
    checkpoint, tokenizer = open_model(path)
    assert got.keys() == documented("info")
    assert got["model"] == path and got["config"]["n_layer"] == CONFIG.n_layer and got["config"]["eos_id"] == 0
    assert got["n_parameters"] == CONFIG.n_params
    assert got["tensors"] == [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.n_bytes} for t in checkpoint.tensors
    ]
    assert got["files"] == [{"name": "model.safetensors", "bytes": Path(path, "model.safetensors").stat().st_size}]
    assert got["memory"]["weights_as_stored"] == 2 * CONFIG.n_params == got["memory"]["weights_f16"]
    for dtype in ("f32", "f16", "q8"):
        cache = KVCache(CONFIG, 1, CONFIG.n_ctx, dtype)
        assert got["memory"][f"cache_{dtype}"] == cache.k.nbytes + cache.v.nbytes
    assert got["tokenizer"] == tokenizer.describe() and got["mask"] == "causal"
    other = result("info", "-m", prefix_path)
    assert other["mask"] == "prefix" and other["tokenizer"] is None and other.keys() == got.keys()


def test_kernels(result):
    got = result("kernels")
    assert got.keys() == documented("kernels") and got["forced_isa"] is None
    assert [(k["op"], k["isa"], k["used"], k["why_not"]) for k in got["kernels"]] == [
        (k.op, k.isa, k.active, k.why_not or None) for k in list_kernels()
    ]
    runs = {isa["isa"]: isa["runs_here"] for isa in got["isas"]}
    assert runs == {k.isa: k.obstacle is None for k in list_kernels()}


def test_bench(result, path):
    got = result("bench", path, "-p", "4,8", "-n", "3", "-r", "2", "-t", "1")
    assert got.keys() == documented("bench") and got["threads"] == 1
    assert [test["test"] for test in got["tests"]] == ["pp4", "pp8", "tg3"]
    for test in got["tests"]:
        assert len(test["rates"]) == 2 and test["tokens_per_second"] > 0
        reads = test["test"].startswith("tg")
        for key in ("bytes_per_token", "read_bytes_per_second", "share"):
            assert (test[key] is not None) == reads


def test_verify(result, path, monkeypatch):
    got = result("verify", path, "--prompt", "Hi there")
    model = refgpt.load(path)
    report = model.verify(model.tokenizer.encode("Hi there"))
    assert got.keys() == documented("verify") and got["ok"] is True and got["first_broken"] is None
    assert [row["name"] for row in got["activations"]] == [tap.name for tap in report.taps]
    assert got["activations"][3]["ratio"] == report.taps[3].ratio and got["logit_error"] == report.logit_error
    right = Runtime.logits

    def wrong(self, ids, prefix_len=0, tap=None):
        return right(self, ids, prefix_len, lambda name, x: tap(name, x * np.nan if name == "blocks.1.ln" else x))

    monkeypatch.setattr(Runtime, "logits", wrong)
    broken = result("verify", path, code=1)
    assert broken["ok"] is False and broken["first_broken"] == "blocks.1.ln"
    (row,) = [row for row in broken["activations"] if row["name"] == "blocks.1.ln"]
    assert row["ratio"] is None and row["ok"] is False


@pytest.mark.parametrize("verify", [True, False])
def test_inspect(result, path, verify):
    got = result("inspect", "-m", path, "Once upon", *([] if verify else ["--no-verify"]))
    model = refgpt.load(path)
    ids = model.tokenizer.encode("Once upon")
    n = len(ids)
    assert got.keys() == documented("inspect") and got["ids"] == ids and "".join(got["tokens"]) == "Once upon"
    logits = model.logits(ids).astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for t, row in enumerate(got["predictions"]):
        best = row["likeliest"][0]
        assert best["id"] == logits[t].argmax() and best["p"] == pytest.approx(p[t, best["id"]], rel=1e-4)
        assert best["text"] == model.tokenizer.decode([best["id"]])
        if t < n - 1:
            assert row["next_p"] == pytest.approx(p[t, ids[t + 1]], rel=1e-4)
            assert row["next_rank"] == 1 + (logits[t] > logits[t, ids[t + 1]]).sum()
    assert got["predictions"][-1]["next_p"] is None
    lens = logit_lens(model, ids)
    assert [[row[0]["id"] for row in layer] for layer in got["lens"]] == lens.argmax(-1).tolist()
    pattern = model.trace(ids, names="blocks.1.pattern")["blocks.1.pattern"]
    assert np.abs(np.array(got["pattern"][1]) - pattern).max() < 1e-5
    assert got["attribution"]["heads"] == logit_attribution(model, ids).heads.tolist()
    assert (got["verify"] is None) != verify and (not verify or got["verify"]["ok"] is True)


def test_inspect_of_a_model_without_a_tokenizer_and_with_a_page(result, tmp_path, prefix_path):
    write_tokenizer(copy := write_model(tmp_path / "m", CONFIG, PARAMS, prefix=True))
    page = tmp_path / "page.html"
    got = result("inspect", "-m", copy, "Once", "-o", page, "--no-verify")
    assert page.stat().st_size > 10_000 and got["prefix_len"] == len(got["ids"])
    seen = np.array(got["pattern"])
    assert (seen[..., 0, :] > 0).sum() > seen[..., 0, 0].size  # the first token looks ahead
    assert np.allclose(seen.sum(-1), 1, atol=1e-3)


def test_what_json_lacks_is_null(capsys):
    print_json({"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf, 1: None}, "d": "é\x1b"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [None, 1.5, [None]], "b": {"c": None, "1": None}, "d": "é\x1b"}
    assert out.isascii() and "\x1b" not in out
