"""Directories of CTranslate2: its own, held to its logits, and ours, held to the Hugging Face checkpoint."""

import json
import struct

import numpy as np
import pytest

import refgpt
from refgpt import ModelConfig
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.numbers.casting import kept_leaf
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import widen
from refgpt.numbers.mapped import place_of, release
from refgpt.spec import forward
from tests.goldens.recorders.ctranslate2_files import CONFIG as RECORDED_CONFIG
from tests.goldens.recorders.ctranslate2_files import HERE, IDS, RECORDED, recorded_params
from tests.helpers import ctranslate2_writer
from tests.helpers.ctranslate2_writer import CONFIG, PARAMS, from_int8, model_bin, to_int8, variables, write_ctranslate2
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params

DIRECTORIES = [directory for directories in RECORDED.values() for directory in directories]
# Of the logits' standard deviation. Both sides compute in float32, each in its order; a swapped row is a thousand times
# further off.
FLOAT32_CLOSE = 2e-5


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_logits_are_those_of_ctranslate2(directory):
    want = np.load(HERE / directory / "logits.npy")
    for backend in ("c", "numpy"):
        model = refgpt.load(HERE / directory, backend=backend)
        assert model.config == RECORDED_CONFIG and model.mask == "causal"
        assert (np.abs(model.logits(IDS) - want) <= FLOAT32_CLOSE * want.std()).all()
    off = np.abs(want - forward(recorded_params(), RECORDED_CONFIG, IDS)).max() / want.std()
    assert off < (0.1 if "int8" in directory else 0.01)  # and these are the logits of the weights that were recorded


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_floats_are_those_that_were_recorded(directory):
    params = open_checkpoint(HERE / directory).params
    dtype = np.float32 if directory in ("float32", "int8") else np.float16
    for name, want in recorded_params().items():
        got = dict(params.items())[name]
        if want.ndim == 1 or "int8" not in directory:
            assert got.dtype == dtype and (widen(got) == widen(want.astype(dtype))).all(), name
        else:
            assert isinstance(got, Encoded) and got.encoding == "int8" and got.dtype == np.float32
            assert (np.abs(widen(got) - want) <= np.abs(want).max(axis=1, keepdims=True) / 127 * 0.51).all(), name


def decoded(params):
    """What is left of weights in 8 bits: row by row, so that rows may come in any order."""
    return params.map(lambda _, leaf: from_int8(*to_int8(leaf)) if leaf.ndim == 2 else leaf)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_logits_are_those_of_the_hugging_face_checkpoint(tmp_path, dtype, int8, interleaved):
    params = random_params(CONFIG, 3, dtype)
    path = write_ctranslate2(tmp_path / "ct2", model_bin(variables(params, CONFIG, int8, interleaved)))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG and checkpoint.family == "gptj"
    assert checkpoint.format == "CTranslate2, version 6, TransformerDecoderSpec revision 8"
    same = decoded(params) if int8 else params
    for name, leaf in checkpoint.params.items():
        assert (widen(leaf) == widen(dict(same.items())[name])).all(), name
    twin = write_model(tmp_path / "hf", CONFIG, same.map(lambda _, leaf: widen(leaf)))
    for kept in (None, "f16"):
        want = refgpt.load(twin, dtype=kept).logits(IDS)
        assert (refgpt.load(path, dtype=kept).logits(IDS) == want).all()
        spec = refgpt.load(path, backend="numpy", dtype=kept).logits(IDS)  # whose order depends on where an array lies
        assert (np.abs(spec - want) <= FLOAT32_CLOSE * want.std()).all()


def test_rows_come_in_any_slices(tmp_path):
    path = write_ctranslate2(tmp_path, model_bin(variables(int8=True)))
    leaves, same = dict(open_checkpoint(path).params.items()), dict(decoded(PARAMS).items())
    for name, want in same.items():
        if want.ndim == 2:
            for start, stop in ((0, 1), (3, 21), (len(want) - 1, len(want))):
                assert (leaves[name].rows(start, stop) == want[start:stop]).all(), name
            release(leaves[name])
            assert (kept_leaf(name, leaves[name], "f16") == want.astype(np.float16)).all()
    assert (leaves["wte"][np.array([60, 0, 17])] == same["wte"][[60, 0, 17]]).all()


def test_the_file_itself_may_be_named_and_config_json_be_missing(tmp_path):
    path = write_ctranslate2(tmp_path, model_bin(variables()), layer_norm_epsilon=1e-6)
    assert open_checkpoint(path / "model.bin").config.ln_eps == 1e-6
    (path / "config.json").unlink()
    (path / "vocabulary.json").unlink()
    config = open_checkpoint(path).config
    assert (config.bos_id, config.eos_id, config.ln_eps, config.n_ctx) == (None, None, 1e-5, 2048)


def test_vocabularies_of_either_kind(tmp_path):
    path = write_ctranslate2(tmp_path, model_bin(variables()))
    tokens = json.loads((path / "vocabulary.json").read_text())
    (path / "vocabulary.json").unlink()
    (path / "vocabulary.txt").write_text("\n".join(tokens) + "\n")
    assert open_checkpoint(path).config == CONFIG
    (path / "vocabulary.json").write_text(json.dumps(["other"] * 61))
    assert open_checkpoint(path).config.eos_id is None
    (path / "vocabulary.json").write_text("[")
    with pytest.raises(ConfigError, match=r"vocabulary\.json.*not JSON"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_the_vocabulary_is_bounded(tmp_path, small, kind):
    path = write_ctranslate2(tmp_path, model_bin(variables()))
    (path / "vocabulary.json").unlink()
    with (path / f"vocabulary.{kind}").open("wb") as file:
        file.truncate((8 << 20) + 1)
    with pytest.raises(ConfigError, match=rf"vocabulary\.{kind}: .*far too large"):
        open_checkpoint(path)
    (path / "vocabulary.txt").write_bytes(b"\n" * 1_000_000)
    (path / "vocabulary.json").unlink(missing_ok=True)
    with small():
        assert open_checkpoint(path).config.eos_id is None


def test_aliases_bring_their_scales(tmp_path):
    found = variables(int8=True)
    del found["decoder/projection/weight"], found["decoder/projection/weight_scale"]
    raw = model_bin(found, {"decoder/projection/weight": "decoder/embeddings/weight"})
    params = open_checkpoint(write_ctranslate2(tmp_path, raw)).params
    assert (widen(params.w_head) == widen(params.wte)).all()


def changed(remove=(), **add):
    found = {name: x for name, x in variables(int8=True).items() if name not in remove}
    return found | {name.replace("__", "/"): x for name, x in add.items()}


QKV = "decoder/layer_1/self_attention/linear_0/weight"
FAULTY = {
    "another activation": (changed(decoder__activation=np.array(0, "i1")), "activation describes another.*tanh"),
    "post-norm": (changed(decoder__pre_norm=np.array(0, "i1")), "pre_norm describes"),
    "another base": (
        changed(decoder__layer_1__self_attention__rotary_base=np.array(5e5, "<f4")),
        "rotary_base describes another model.*500000",
    ),
    "a value that is none": (changed(decoder__activation=np.array(np.nan, "<f4")), "activation describes another"),
    "heads that do not divide": (changed(decoder__num_heads=np.array(5, "<i2")), "num_heads does not divide"),
    "no heads": (changed(decoder__num_heads=np.array(-1, "<i2")), "num_heads cannot be used"),
    "heads that are no number": (changed(decoder__num_heads=np.array(np.nan, "<f4")), "num_heads cannot be used"),
    "odd rotation": (
        changed(**{f"decoder__layer_{i}__self_attention__rotary_dim": np.array(3, "<i4") for i in range(2)}),
        "rotary_dim is odd",
    ),
    "rotations that differ": (
        changed(decoder__layer_1__self_attention__rotary_dim=np.array(8, "<i4")),
        "layers rotate differently; got layer 1",
    ),
    "a matrix missing": (changed([QKV]), "no layer_1/self_attention/linear_0/weight"),
    "a scale missing": (changed([f"{QKV}_scale"]), "rows have no scales.*got none"),
    "scales too few": (
        changed(decoder__embeddings__weight_scale=np.ones(60, "<f4")),
        r"embeddings/weight.*got float32 \[60\]",
    ),
    "scales for a part": (changed(**{f"{QKV}_scale": np.ones(95, "<f4")}), "queries, keys and values"),
    "no head": (changed(["decoder/projection/weight"]), "no projection/weight"),
    "no layers": (
        {name: x for name, x in variables().items() if "decoder/layer_" not in name or "layer_norm/" in name},
        "no layer_0/self_attention/linear_0/weight",
    ),
    "a layer missing": (
        {name.replace("layer_1/", "layer_9000/"): x for name, x in variables().items()},
        r"no layer_1/.* and \d+ more",
    ),
    "biases of attention": (
        changed(decoder__layer_0__self_attention__linear_1__bias=np.ones(32, "<f4")),
        "no place in GPT-J; got decoder/layer_0/self_attention/linear_1/bias",
    ),
    "an encoder": (changed(encoder__embeddings__weight=np.ones((3, 3), "<f4")), "no place in GPT-J"),
    "positions": (changed(decoder__position_encodings__encodings=np.ones((3, 3), "<f4")), "no place in GPT-J"),
    "a sliding window": (changed(decoder__sliding_window=np.array(9, "<i4")), "no place in GPT-J"),
    "another shape": (changed(decoder__layer_norm__beta=np.ones(31, "<f4")), r"layer_norm/beta is \[31\]"),
    "a flat table": (changed(decoder__embeddings__weight=np.ones(61, "<f4")), "not matrices"),
    "16-bit integers": (changed(decoder__embeddings__weight=np.ones((61, 32), "<i2")), "weight holds int16"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_models_that_are_no_gptj(tmp_path, case):
    found, says = FAULTY[case]
    with pytest.raises((CheckpointError, ConfigError), match=says) as error:
        open_checkpoint(write_ctranslate2(tmp_path, model_bin(found)))
    assert str(tmp_path) in str(error.value) and len(str(error.value)) < 4000


def huge(at, n=2**32 - 1):
    """The file with a large number at a place."""
    raw = bytearray(model_bin(variables()))
    raw[at : at + 4] = struct.pack("<L", n)
    return bytes(raw)


def many(n_variables, n_aliases):
    """Numbers of one byte, and second names of the first."""
    numbers = dict.fromkeys(map(str, range(n_variables or 1)), np.array(0, "i1"))
    return model_bin(numbers, {f"x{i}": "0" for i in range(n_aliases)})


COUNT = 4 + 2 + 23 + 4  # where the number of variables is
TWO = b"\1\2\0\0\0"  # one dimension, of two; then type 1, two bytes
FILES = {
    "a later version": (model_bin(variables(), version=7), "version of the file.*got 7; wanted 6"),
    "an encoder-decoder": (model_bin(variables(), spec="TransformerSpec"), "not supported.*TransformerSpec"),
    "many variables": (huge(COUNT), "the number of variables makes no sense"),
    "many variables that are there": (many(40_000, 0), "the number of .* makes no sense; got 40000"),
    "many second names": (many(0, 40_000), "the number of .* makes no sense; got 40000"),
    "one variable more": (huge(COUNT, len(variables()) + 1), "makes no sense|ends within"),
    "one variable fewer": (huge(COUNT, len(variables()) - 1), "makes no sense|cannot be another name"),
    "a long name": (huge(COUNT + 4), "the name of a variable makes no sense"),
    "data after the end": (model_bin(variables()) + b"x", "data after the end"),
    "an alias of nothing": (model_bin(variables(), {"a": "b"}), "'a' cannot be another name of 'b'"),
    "an alias twice": (model_bin(variables(), {"decoder/alibi": "decoder/alibi"}), "cannot be another name"),
    "a variable twice": (
        model_bin({}).replace(struct.pack("<2L", 8, 0), struct.pack("<2L", 8, 2), 1)[:-4]
        + 2 * b"\2\0a\0\0\1\1\0\0\0x"
        + bytes(4),
        "'a' is there twice",
    ),
    "another type": (model_bin({"a": np.ones(2, "i1")}).replace(b"\2\0\0\0\1\2", b"\2\0\0\0\6\2"), "type is not one"),
    "a large shape": (model_bin({"a": np.ones(2, "i1")}).replace(TWO, b"\1" + b"\xff" * 4, 1), "fit the shape"),
    "a large shape and as many bytes": (
        model_bin({"a": np.ones(2, "i1")}).replace(TWO, b"\1" + b"\xff" * 4),
        "the file ends within the variable 'a'",
    ),
    "bytes too many": (model_bin({"a": np.ones(9, "i1")})[:-9], "the file ends within .*9 bytes at"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_make_no_sense(tmp_path, case, quick, small):
    raw, says = FILES[case]
    path = write_ctranslate2(tmp_path, raw)
    for guard in (quick, small):
        with guard(), pytest.raises((CheckpointError, ConfigError), match=says) as error:
            open_checkpoint(path)
        assert "model.bin" in str(error.value) and len(str(error.value)) < 1000


def test_other_files_called_model_bin_are_not_taken_for_one(tmp_path):
    for raw in (b"", b"\6", b"PK\3\4" + bytes(100), struct.pack("<LH", 6, 9) + b"something"):
        (tmp_path / "model.bin").write_bytes(raw)
        with pytest.raises(ConfigError, match=r"config\.json"):
            open_checkpoint(tmp_path / "model.bin")


def test_awq_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="this quantisation is not read; got 1"):
        open_checkpoint(write_ctranslate2(tmp_path, model_bin(variables()), quantization_type=1))


def test_numbers_that_are_not_finite_are_found(tmp_path):
    found = variables(int8=True)
    found[f"{QKV}_scale"][5] = 0
    path = write_ctranslate2(tmp_path, model_bin(found))
    with pytest.raises(CheckpointError, match=f"model.bin, tensor '{QKV}': .*NaN or infinity"):
        refgpt.load(path)
    leaf = open_checkpoint(path).params.blocks[0].wq
    assert place_of(leaf, "wq") == f"{path}/model.bin, tensor 'decoder/layer_0/self_attention/linear_0/weight'"


def test_opening_6b_parameters_costs_nothing(tmp_path, quick, small):
    """Six gigabytes of holes."""
    config = ModelConfig(bos_id=None, eos_id=None)
    c, f, v = config.d_model, config.d_ff, config.n_vocab
    shapes = {"embeddings/weight": (v, c), "projection/weight": (v, c)}
    for i in range(config.n_layer):
        at = f"layer_{i}/"
        shapes |= {
            f"{at}self_attention/linear_0/weight": (3 * c, c),
            f"{at}self_attention/linear_1/weight": (c, c),
            f"{at}ffn/linear_0/weight": (f, c),
            f"{at}ffn/linear_1/weight": (c, f),
        }
    vectors = {name: x for name, x in variables(random_params(ctranslate2_writer.CONFIG, 1)).items() if x.ndim == 0}
    vectors = {name: x for name, x in vectors.items() if "layer_" not in name}
    vectors["decoder/num_heads"] = np.array(16, "<i2")
    for name, n in {"layer_norm/gamma": c, "layer_norm/beta": c, "projection/bias": v}.items():
        vectors[f"decoder/{name}"] = np.zeros(n, "<f2")
    for i in range(config.n_layer):
        at = f"decoder/layer_{i}/"
        for name, n in {
            "shared_layer_norm/gamma": c,
            "shared_layer_norm/beta": c,
            "ffn/linear_0/bias": f,
            "ffn/linear_1/bias": c,
        }.items():
            vectors[at + name] = np.zeros(n, "<f2")
        vectors[f"{at}self_attention/rotary_dim"] = np.array(64, "<i4")
        vectors[f"{at}self_attention/rotary_interleave"] = np.array(0, "i1")
    for name, shape in shapes.items():
        vectors[f"decoder/{name}_scale"] = np.ones(shape[0], "<f4")
    raw = bytearray(model_bin(vectors)[:-4])
    raw[COUNT : COUNT + 4] = struct.pack("<L", len(vectors) + len(shapes))
    with (tmp_path / "model.bin").open("wb") as file:
        file.write(raw)
        for name, (n_out, n_in) in shapes.items():
            word = f"decoder/{name}".encode() + b"\0"
            file.write(struct.pack("<H", len(word)) + word + struct.pack("<B2LBL", 2, n_out, n_in, 1, n_out * n_in))
            file.seek(n_out * n_in, 1)
        file.write(bytes(4))
    with quick():
        checkpoint = open_checkpoint(tmp_path)
    with small():
        open_checkpoint(tmp_path)
    assert checkpoint.config == config
    assert sum(leaf.size for _, leaf in checkpoint.params.items()) == 6_050_882_784
