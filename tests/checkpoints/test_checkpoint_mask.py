import json
import logging

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.files import safetensors_file
from refgpt.checkpoints.mask import find_mask
from refgpt.conversion import convert
from refgpt.numbers.dtypes import BFLOAT16
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import write_safetensors

N = 300  # more than one strip of rows


def find(*masks, n_ctx=N, names=(), path="here"):
    return find_mask("auto", {f"h.{i}.attn.bias": mask for i, mask in enumerate(masks)}, n_ctx, names, path)


def bfloat16(mask):
    return (mask.astype("<f4").view("<u4") >> 16).astype("<u2").view(BFLOAT16)


@pytest.mark.parametrize("dtype", ["?", "u1", "<f2", "<f4", "<f8", "<i8", "bf16"])
@pytest.mark.parametrize("lead", [(1, 1), (1,), ()])
def test_pattern(dtype, lead):
    convert = bfloat16 if dtype == "bf16" else lambda mask: mask.astype(dtype)
    causal, ones = (convert(mask).reshape(*lead, N, N) for mask in (np.tri(N), np.ones((N, N))))
    assert find(causal, causal) == ("causal", "attn.bias is lower triangular in every layer that stores it (2)")
    assert find(ones, ones) == ("prefix", "attn.bias is all ones in every layer that stores it (2), as in GPT-JT")


def one_changed(mask, row, column):
    mask = mask.astype(bool)
    mask[row, column] ^= True
    return mask


@pytest.mark.parametrize("row", [0, 1, 255, 256, 298, 299])
def test_one_wrong_element_is_noticed(row):
    for column in (0, row, min(row + 1, N - 1), N - 1):
        for mask in (np.tri(N), np.ones((N, N))):
            with pytest.raises(CheckpointError, match=r"h\.0\.attn\.bias other.*--mask prefix"):
                find(one_changed(mask, row, column))


def test_layers_must_agree():
    with pytest.raises(CheckpointError, match=r"h.0.attn.bias causal, h.1.attn.bias prefix"):
        find(np.tri(5), np.ones((5, 5)))


def test_only_positions_that_can_occur_are_looked_at():
    mask = np.tri(10)
    mask[9, 0], mask[2, 9] = 0, 1
    assert find(mask, n_ctx=9)[0] == "causal"
    assert find(np.tri(4), n_ctx=9)[0] == "causal"
    assert find(np.ones((1, 1, 1, 1)))[0] == "causal"


@pytest.mark.parametrize("shape", [(), (6,), (0, 0), (2, 3), (2, 4, 4), (1, 1, 0, 0)])
def test_other_shapes_say_nothing(shape):
    assert find(np.ones(shape)) == ("causal", "no attn.bias is stored; causal is the usual mask")
    assert find_mask("auto", {"h.0.attn.masked_bias": np.ones((3, 3))}, 3, (), "here")[0] == "causal"


def test_the_masks_do_not_stay_in_memory(tmp_path, resident_bytes):
    masks = {f"h.{i}.attn.bias": np.tri(3000, dtype="u1") for i in range(2)}
    write_safetensors(tmp_path / "x", masks)
    buffers = safetensors_file.read(tmp_path / "x")
    before = resident_bytes()
    assert find_mask("auto", buffers, 3000, (), tmp_path)[0] == "causal"
    assert resident_bytes() - before < 2e6


@pytest.mark.parametrize("name", ["togethercomputer/GPT-JT-6B-v1", "gpt-jt-moderation", "my_GPT_JT"])
def test_a_name_speaks_only_if_no_buffer_does(name):
    assert find(names=("other", name)) == ("prefix", f"no attn.bias says otherwise, and the model is called {name}")
    mask, source = find(np.tri(3), names=(name,))
    assert mask == "causal" and source.endswith(f"stores it (1), though the model is called {name}")
    assert find(np.ones((3, 3)), names=("gpt-j",))[0] == "prefix"
    assert find(names=("EleutherAI/gpt-j-6b",))[0] == "causal"


def test_a_key_counts_after_the_buffers_and_before_the_name():
    def stated(value, *masks, asked="auto"):
        found = {f"h.{i}.attn.bias": mask for i, mask in enumerate(masks)}
        return find_mask(asked, found, 3, ("GPT-JT",), "here", "refgpt_mask", value)

    assert stated("causal") == ("causal", "the key refgpt_mask says so")
    assert stated("prefix") == ("prefix", "the key refgpt_mask says so")
    assert stated("prefix", np.tri(3))[0] == "causal" and stated("causal", np.ones((3, 3)))[0] == "prefix"
    assert stated(None)[0] == "prefix" and stated("causal", asked="prefix")[0] == "prefix"
    for value in ("auto", "both", "", 1, True, ["causal"]):
        with pytest.raises(ConfigError, match=r"here: refgpt_mask makes no sense; got .*; wanted causal or prefix"):
            stated(value)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_a_causal_mask_that_refgpt_wrote_is_no_news(mask, tmp_path, caplog):
    path = write_model(tmp_path / "model", tiny_config(), random_params(tiny_config(), 1))
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"refgpt_mask": mask}), encoding="utf-8")
    with caplog.at_level(logging.INFO, "refgpt"):
        assert refgpt.load(path, backend="numpy").mask == mask
    assert [record.levelno for record in caplog.records] == ([logging.WARNING] if mask == "prefix" else [])


def test_the_causal_mask_of_a_packed_model_is_no_news(tmp_path, caplog):
    config = tiny_config()
    path = write_model(tmp_path / "model", config, random_params(config, 1), prefix=False)
    with caplog.at_level(logging.INFO, "refgpt"):
        assert refgpt.load(path, backend="numpy").mask == "causal"
        assert [record.levelno for record in caplog.records] == [logging.INFO]  # another program's buffer is news
        caplog.clear()
        convert(open_checkpoint(path), None, tmp_path / "packed", dtype="f32")
        assert refgpt.load(tmp_path / "packed", backend="numpy").mask == "causal"
    assert not caplog.records


@pytest.mark.parametrize("to", ["hf", "gguf", "refgpt"])
def test_a_reader_says_whether_refgpt_wrote_the_mask(to, tmp_path):
    config = tiny_config()
    path = write_model(tmp_path / "model", config, random_params(config, 1), prefix=True)
    found = open_checkpoint(path)
    assert found.mask == "prefix" and not found.mask_written
    convert(found, None, tmp_path / "out", to, "f16")
    assert open_checkpoint(tmp_path / "out").mask_written
    assert not open_checkpoint(tmp_path / "out", mask="causal").mask_written  # the caller's, not the files'
