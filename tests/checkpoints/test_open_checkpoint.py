import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest

from refgpt import ModelConfig
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.layouts.huggingface import UNREAD
from tests.goldens.recorders.torch_files import CONFIG as RECORDED_CONFIG
from tests.goldens.recorders.torch_files import HERE
from tests.helpers import writers
from tests.helpers.tiny import random_params
from tests.helpers.writers import (
    CONFIG,
    PARAMS,
    buffers,
    state_dict,
    write_config,
    write_index,
    write_safetensors,
    write_torch,
)

ONES, TRIANGLE = np.ones((12, 12), "?"), np.tri(12, dtype="?")
LAYOUTS = ["model.safetensors", "pytorch_model.bin", "safetensors shards", "bin shards"]


def write(directory, layout="model.safetensors", tensors=None, **config):
    """A whole checkpoint."""
    tensors = state_dict() if tensors is None else tensors
    directory.mkdir(exist_ok=True)
    write_config(directory, **config)
    if layout.endswith("shards"):
        writers.write_shards(directory, layout.split()[0], tensors)
    elif layout.endswith("safetensors"):
        write_safetensors(directory / layout, tensors)
    else:
        write_torch(directory / layout, tensors)
    return directory


def assert_holds(checkpoint, params=PARAMS):
    leaves = dict(checkpoint.params.items())
    wanted = dict(params.items())
    assert leaves.keys() == wanted.keys()
    for name, want in wanted.items():
        assert leaves[name].dtype == want.dtype and leaves[name].shape == want.shape, name
        assert leaves[name].tobytes() == want.tobytes(), name
        assert not leaves[name].flags.owndata and not leaves[name].flags.writeable


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(tmp_path, layout, dtype):
    params = random_params(CONFIG, seed=2, dtype=dtype)
    checkpoint = open_checkpoint(write(tmp_path, layout, state_dict(params)))
    assert_holds(checkpoint, params)
    assert checkpoint.config == CONFIG and checkpoint.family == "gptj" and checkpoint.path == tmp_path
    assert checkpoint.mask == "causal" and "no attn.bias" in checkpoint.mask_source
    assert {info.dtype for info in checkpoint.tensors} == {dtype}
    assert sum(info.n_bytes for info in checkpoint.tensors) == CONFIG.n_params * (4 if dtype == "f32" else 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_buffers_and_bare_names(tmp_path, layout, prefix):
    tensors = state_dict(prefix=prefix) | buffers(ONES, prefix=prefix)
    checkpoint = open_checkpoint(write(tmp_path, layout, tensors))
    assert_holds(checkpoint)
    assert checkpoint.mask == "prefix" and "all ones" in checkpoint.mask_source
    assert {info.name for info in checkpoint.tensors} == tensors.keys()
    bias = next(info for info in checkpoint.tensors if info.name.endswith("attn.bias"))
    assert bias.dtype == "bool" and bias.shape == (1, 1, 12, 12) and bias.n_bytes == 144 and bias.file.is_file()


def test_dtypes_may_be_mixed_in_a_file(tmp_path):
    narrow, wide = random_params(CONFIG, 1, "bf16"), random_params(CONFIG, 2, "f16")
    mixed = replace(
        PARAMS, wte=narrow.wte, blocks=(PARAMS.blocks[0], wide.blocks[1]), b_head=PARAMS.b_head.astype("<f8")
    )
    for layout in LAYOUTS:
        assert_holds(open_checkpoint(write(tmp_path / layout, layout, state_dict(mixed))), mixed)


@pytest.mark.parametrize("file", ["float32_causal", "float16_ones", "bfloat16", "parameters", "transposed"])
def test_files_of_torch(file):
    checkpoint = open_checkpoint(HERE / f"{file}.bin")
    params = random_params(RECORDED_CONFIG, seed=9, dtype={"float16_ones": "f16", "bfloat16": "bf16"}.get(file, "f32"))
    assert_holds(checkpoint, params)
    assert checkpoint.config == RECORDED_CONFIG and checkpoint.mask == (
        "prefix" if file == "float16_ones" else "causal"
    )


def test_a_directory_of_transformers():
    checkpoint = open_checkpoint(HERE / "transformers")
    assert_holds(checkpoint, random_params(RECORDED_CONFIG, seed=9, dtype="f16"))
    assert checkpoint.config == RECORDED_CONFIG


ODD_BUFFERS = {
    "uint8": buffers(ONES.astype("u1")),
    "float32": buffers(ONES.astype("<f4")),
    "int64": buffers(ONES.astype("<i8")),
    "flat masked_bias": {"transformer.h.0.attn.masked_bias": np.array([-1e4], "<f2")},
    "a vector": {"transformer.h.0.attn.bias": np.ones(7, "<f4")},
    "nothing": {"transformer.h.1.attn.bias": np.zeros((1, 1, 0, 0), "?")},
    "rotary": {
        "transformer.h.0.attn.embed_positions": np.ones((12, 4), "<f4"),
        "transformer.h.0.attn.rotary_emb.inv_freq": np.ones(2, "<f4"),
    },
    "of a layer that is gone": {"transformer.h.9.attn.bias": TRIANGLE},
}


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("case", ODD_BUFFERS)
def test_buffers_never_hurt(tmp_path, layout, case):
    assert_holds(open_checkpoint(write(tmp_path, layout, state_dict() | ODD_BUFFERS[case])))


def test_a_strange_mask_is_an_error_unless_one_is_asked_for(tmp_path):
    write(tmp_path, tensors=state_dict() | buffers(TRIANGLE[::-1].copy()))
    with pytest.raises(CheckpointError, match=r"attn\.bias"):
        open_checkpoint(tmp_path)
    for mask in ("causal", "prefix"):
        checkpoint = open_checkpoint(tmp_path, mask=mask)
        assert checkpoint.mask == mask and checkpoint.mask_source == "it was asked for"
    with pytest.raises(ConfigError, match=r"^mask: cannot be used; got 'bidirectional'; wanted 'auto', "):
        open_checkpoint(tmp_path, mask="bidirectional")


def test_gpt_jt_by_name(tmp_path):
    assert open_checkpoint(write(tmp_path / "a", _name_or_path="togethercomputer/GPT-JT-6B-v0")).mask == "prefix"
    assert open_checkpoint(write(tmp_path / "GPT-JT-6B-v1")).mask == "prefix"
    snapshot = tmp_path / "models--togethercomputer--GPT-JT-6B-v1" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    assert open_checkpoint(write(snapshot)).mask == "prefix"
    assert open_checkpoint(write(tmp_path / "b", _name_or_path=7)).mask == "causal"
    tensors = state_dict() | buffers(TRIANGLE)
    assert open_checkpoint(write(tmp_path / "GPT-JT-causal", tensors=tensors)).mask == "causal"


def test_safetensors_are_preferred_and_one_file_to_shards(tmp_path):
    for layout in reversed(LAYOUTS):
        write(tmp_path, layout)
    order = [
        ("model.safetensors", "model.safetensors"),
        ("model.safetensors.index.json", "model-00001-of-00003.safetensors"),
        ("pytorch_model.bin", "pytorch_model.bin"),
        ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00003.bin"),
    ]
    for found, file in order:
        assert open_checkpoint(tmp_path).tensors[0].file == tmp_path / file
        (tmp_path / found).unlink()
    with pytest.raises(CheckpointError, match="no weights that can be read"):
        open_checkpoint(tmp_path)


def test_a_file_or_an_index_may_be_named(tmp_path):
    for layout in LAYOUTS:
        write(tmp_path, layout)
    write(tmp_path, "other.pt")
    for name in ("model.safetensors", "other.pt", "pytorch_model.bin.index.json"):
        assert_holds(open_checkpoint(tmp_path / name))
        assert_holds(open_checkpoint(str(tmp_path / name)))
    with pytest.raises(CheckpointError, match=r"kind are not read.*\.safetensors"):
        open_checkpoint(tmp_path / "config.json")


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or directory"):
        open_checkpoint(tmp_path / "none")
    for no_path in ("nul\0byte", "a/nul\0byte", "\ud800"):
        with pytest.raises(CheckpointError, match="path: cannot be used"):
            open_checkpoint(no_path)
    with pytest.raises(CheckpointError, match=r"cannot be read|no such file"):
        open_checkpoint("Once upon a time" * 1000)
    write_safetensors(tmp_path / "model.safetensors", state_dict())
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    write_config(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json.*model\.safetensors or"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("flax_model.msgpack", "from_flax=True"),
        ("tf_model.h5", "from_tf=True"),
        ("gpt-j-q4_0.gguf", "fetch it again"),
        ("ggml-model.bin", "fetch it again"),
        ("shard_0.npz", "step_N/shard_K"),
        ("adapter_model.safetensors", "adapter=.*merge_adapter"),
        ("step_9_slim.tar.zst", "name the archive itself"),
        ("step_9_slim.tar.zstd", "name the archive itself"),
        ("step_9.tar", "unpack it"),
        ("gpt-j.tar.gz", "unpack it"),
        ("gpt-j.tar.bz2", "unpack it"),
    ],
)
def test_weights_in_other_formats_are_named_with_the_way_out(tmp_path, name, way_out):
    write_config(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{name}.*not read.*{way_out}"):
        open_checkpoint(tmp_path)


def test_a_file_of_another_format_has_its_way_out_too(tmp_path):
    write_config(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"kind are not read; got called GGUF but beginning otherwise; .*fetch it again"
    ):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["x.tar", "y.tar.gz"])
def test_a_tar_archive_is_named_before_a_config_is_missed(tmp_path, name):
    (tmp_path / name).write_bytes(b"a" * 2000)
    with pytest.raises(CheckpointError, match=rf"{name}: .*not read; got a tar archive;.*unpack it"):
        open_checkpoint(tmp_path / name)


def test_every_unread_pattern_can_match(tmp_path):
    write_config(tmp_path)
    for pattern in UNREAD:
        (tmp_path / pattern.replace("*", "_")).touch()
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert str(error.value).count("not read") == len(UNREAD)


@pytest.mark.parametrize("model_type", ["bloom", "opt", "llama", None, 3, ["gptj"]])
def test_other_families_are_refused_by_name(tmp_path, model_type):
    with pytest.raises(ConfigError, match=r"not supported.*gptj") as error:
        open_checkpoint(write(tmp_path, model_type=model_type))
    assert repr(model_type) in str(error.value)


def changed(remove=(), **add):
    tensors = {name: tensor for name, tensor in state_dict().items() if name not in remove}
    return tensors | {name.replace("__", "."): tensor for name, tensor in add.items()}


LORA = {"base_model__h__0__attn__q_proj__lora_A__weight": np.ones((2, 16), "<f4")}
FAULTY = {
    "one missing": (
        changed(["transformer.h.1.mlp.fc_in.bias"]),
        {},
        r"1 of 25 tensors of a GPT-J are missing.*h\.1\.mlp\.fc_in\.bias",
    ),
    "two missing": (
        changed(["transformer.h.1.ln_1.bias", "transformer.wte.weight"]),
        {},
        r"no wte\.weight, h\.1\.ln_1\.bias",
    ),
    "head's bias missing": (changed(["lm_head.bias"]), {}, r"lm_head\.bias.*head has a bias"),
    "head missing": (changed(["lm_head.weight", "lm_head.bias"]), {}, "without its head"),
    "no tensors": ({}, {}, r"25 of 25 tensors"),
    "more layers in the config": (state_dict(), {"n_layer": 3}, r"10 of 35 tensors.*h\.2\.ln_1\.weight"),
    "fewer layers in the config": (state_dict(), {"n_layer": 1}, r"no place.*h\.1\.attn\.k_proj\.weight.*n_layer"),
    "one too many": (
        changed(transformer__h__0__attn__q_proj__bias=np.ones(16, "<f4")),
        {},
        r"no place.*h\.0\.attn\.q_proj\.bias",
    ),
    "adapters": (changed(**LORA), {}, "LoRA"),
    "wrong vocabulary": (state_dict(), {"vocab_size": 36}, r"wte\.weight is \[37, 16\].*\[36, 16\]"),
    "wrong d_ff": (state_dict(), {"n_inner": 25}, r"h\.0\.mlp\.fc_in\.bias is \[24\].*\[25\]"),
    "transposed": (
        changed(transformer__h__0__mlp__fc_in__weight=np.ones((16, 24), "<f4")),
        {},
        r"h\.0\.mlp\.fc_in\.weight is \[16, 24\], the configuration says \[24, 16\]",
    ),
    "whole numbers": (changed(lm_head__bias=np.ones(37, "<i8")), {}, r"lm_head\.bias holds int64"),
    "with and without": (changed(wte__weight=PARAMS.wte), {}, r"'transformer\.wte\.weight' and 'wte\.weight'"),
}


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("case", FAULTY)
def test_tensors_that_do_not_fit(tmp_path, layout, case):
    tensors, config, says = FAULTY[case]
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(write(tmp_path, layout, tensors, **config))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", ["wte", "w_head"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_tied_matrix_under_either_name_where_the_configuration_says_so(tmp_path, bare, kept, layout):
    """Which of the two names stays depends on what wrote the file."""
    dropped = "lm_head.weight" if kept == "wte" else "transformer.wte.weight"
    tensors = {
        name.removeprefix("transformer.") if bare else name: tensor for name, tensor in changed([dropped]).items()
    }
    tied = open_checkpoint(write(tmp_path / "tied", layout, tensors, tie_word_embeddings=True)).params
    assert tied.w_head is tied.wte and tied.wte.tobytes() == getattr(PARAMS, kept).tobytes()
    for said in ({}, {"tie_word_embeddings": False}):
        with pytest.raises(CheckpointError, match=dropped.removeprefix("transformer.").replace(".", r"\.")):
            open_checkpoint(write(tmp_path / f"untied{len(said)}", layout, tensors, **said))


def test_a_tied_model_has_one_of_the_two_at_least_and_both_only_if_they_are_the_same(tmp_path):
    with pytest.raises(CheckpointError, match=r"the head should be the embedding.*set tie_word_embeddings to false"):
        open_checkpoint(write(tmp_path / "two", tie_word_embeddings=True))
    same = {**state_dict(PARAMS), "lm_head.weight": PARAMS.wte}
    both = open_checkpoint(write(tmp_path / "both", tensors=same, tie_word_embeddings=True)).params
    assert both.w_head.tobytes() == both.wte.tobytes() == PARAMS.wte.tobytes()
    neither = changed(["lm_head.weight", "transformer.wte.weight"])
    with pytest.raises(CheckpointError, match=r"2 of .* are missing.*lm_head\.weight"):
        open_checkpoint(write(tmp_path / "neither", tensors=neither, tie_word_embeddings=True))


INDEX = "pytorch_model.bin.index.json"
FIRST = "pytorch_model-00001-of-00003.bin"


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"lm_head.bias": "elsewhere.bin"}, "elsewhere.bin"),
        ({"lm_head.bias": "../secret.bin"}, "not in its directory"),
        ({"lm_head.bias": "/etc/passwd"}, "not in its directory"),
        ({"lm_head.bias": "."}, "not in its directory"),
        ({"lm_head.bias": "\ud800"}, "not in its directory"),
        ({"lm_head.bias": "a\0b"}, "not in its directory"),
        ({"lm_head.bias": 3}, "no map"),
        ({"lm_head.bias": None}, "no map"),
        ({"lm_head.bias": "config.json"}, "kind are not read"),
        ({"no.such.tensor": FIRST}, "no.such.tensor"),
    ],
)
def test_an_index_that_lies(tmp_path, weight_map, says):
    good = writers.write_shards(write(tmp_path), "bin", state_dict())
    write_index(tmp_path / INDEX, good | weight_map)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path / INDEX)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_an_index_without_a_map(tmp_path, text):
    write(tmp_path)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / INDEX)


def test_shards_that_disagree(tmp_path):
    good = writers.write_shards(write(tmp_path), "bin", state_dict())
    swapped = good | {"lm_head.bias": next(file for file in good.values() if file != good["lm_head.bias"])}
    write_index(tmp_path / INDEX, swapped)
    with pytest.raises(CheckpointError, match=r"not in the shard.*lm_head\.bias"):
        open_checkpoint(tmp_path / INDEX)
    shutil.copy(tmp_path / FIRST, tmp_path / "copy.bin")
    write_index(tmp_path / INDEX, good | {"more": "copy.bin"})
    with pytest.raises(
        CheckpointError, match=r"wte\.weight' is in two shards; got pytorch_model-00001-of-00003.bin and copy.bin"
    ):
        open_checkpoint(tmp_path / INDEX)


def names_6b():
    """The 285 tensors of GPT-J-6B and their shapes."""
    yield "transformer.wte.weight", (50400, 4096)
    for i in range(28):
        at = f"transformer.h.{i}."
        yield from ((f"{at}ln_1.{kind}", (4096,)) for kind in ("weight", "bias"))
        yield from ((f"{at}attn.{kind}_proj.weight", (4096, 4096)) for kind in ("q", "k", "v", "out"))
        yield from ((f"{at}mlp.fc_in.weight", (16384, 4096)), (f"{at}mlp.fc_in.bias", (16384,)))
        yield from ((f"{at}mlp.fc_out.weight", (4096, 16384)), (f"{at}mlp.fc_out.bias", (4096,)))
    yield from ((f"transformer.ln_f.{kind}", (4096,)) for kind in ("weight", "bias"))
    yield from (("lm_head.weight", (50400, 4096)), ("lm_head.bias", (50400,)))


def test_opening_6b_parameters_costs_nothing(tmp_path, quick, small):
    """Twelve gigabytes of holes in a sparse file: shapes are checked and nothing is read."""
    end, header = 0, {}
    for name, shape in names_6b():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gptj"}))
    with quick():
        checkpoint = open_checkpoint(tmp_path)
    with small():
        open_checkpoint(tmp_path)
    assert checkpoint.config == ModelConfig() and len(checkpoint.tensors) == 285
    assert sum(leaf.size for _, leaf in checkpoint.params.items()) == 6_050_882_784
    assert sum(info.n_bytes for info in checkpoint.tensors) == end == 12_101_765_568
