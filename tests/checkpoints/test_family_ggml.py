"""ggml and GGUF files of GPT-2 and GPT-NeoX, blocks of q6_K, and the blocks of earlier quantisations."""

import struct
from dataclasses import replace
from functools import partial

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt import CheckpointError, ConfigError
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.files.ggml_blocks import BLOCKS, EARLIER, decode
from refgpt.conversion import convert
from refgpt.numbers.leaves import widen
from tests.helpers.family_writers import (
    EARLIER_TYPES,
    GPT2,
    NEOX,
    decoded_earlier,
    decoded_q6_k,
    earlier_ggml,
    family_gguf,
    fused,
    gpt2_ggml,
    neox_ggml,
    random_tree,
)
from tests.helpers.fuzzing import FAST, answers_properly, damaged, one_file
from tests.helpers.ggml_writers import CONFIG, PARAMS, decoded, write
from tests.helpers.writers import state_dict

RANDOM = np.random.default_rng(8)
FAST = settings(FAST, max_examples=150)


def assert_holds(checkpoint, params):
    found = dict(checkpoint.params.items())
    assert found.keys() == dict(params.items()).keys()
    for name, want in params.items():
        assert widen(found[name]).tobytes() == np.ascontiguousarray(widen(want)).tobytes(), name


# ---- ggml's own files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True])
def test_ggml_of_gpt2(tmp_path, head):
    checkpoint = open_checkpoint(write(tmp_path / "m.bin", gpt2_ggml(head=head)))
    assert checkpoint.family == "gpt2" and checkpoint.config == GPT2
    assert_holds(checkpoint, random_tree(GPT2))
    assert checkpoint.vocabulary.tokens[11] == b"11;"


@pytest.mark.parametrize("parallel", [True, False])
def test_ggml_of_gpt_neox(tmp_path, parallel):
    config = replace(NEOX, use_parallel_residual=parallel, bos_id=None, eos_id=None)
    checkpoint = open_checkpoint(write(tmp_path / "m.bin", neox_ggml(config)))
    assert checkpoint.family == "gpt_neox"
    assert replace(checkpoint.config, bos_id=None, eos_id=None) == config
    assert_holds(checkpoint, random_tree(NEOX))


def test_ggml_of_gpt_neox_before_the_header_told_the_residual(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "m.bin", neox_ggml(old=True)))
    assert checkpoint.family == "gpt_neox" and checkpoint.config.use_parallel_residual
    assert_holds(checkpoint, random_tree(NEOX))


@pytest.mark.parametrize("encoding", ["q4_0", "q5_1", "q8_0", "f16"])
def test_quantised_files_keep_their_blocks(tmp_path, encoding):
    """By head in one format, one after the other in the next: the blocks are carried over as they are."""
    ftype = {"q4_0": 2002, "q5_1": 2009, "q8_0": 2007, "f16": 1}[encoding]
    for kind, raw in (
        ("gpt2", gpt2_ggml(ftype=ftype, encoding=encoding)),
        ("neox", neox_ggml(ftype=ftype, encoding=encoding)),
    ):
        config = GPT2 if kind == "gpt2" else NEOX
        want = decoded(random_tree(config).map(lambda name, leaf: leaf), encoding)
        if kind == "gpt2":
            want = replace(want, wpe=random_tree(config).wpe)
        checkpoint = open_checkpoint(write(tmp_path / f"{kind}.bin", raw))
        assert_holds(checkpoint, want)
        convert(checkpoint, None, tmp_path / f"{kind}-gguf", "gguf")
        there = open_checkpoint(tmp_path / f"{kind}-gguf")
        assert_holds(there, want)
        assert {info.dtype for info in there.tensors} == {encoding, "f32"}
        assert all("attn_qkv.weight" not in info.name or info.dtype == encoding for info in there.tensors)


def test_what_fits_no_family_is_refused(tmp_path):
    """StarCoder's files are laid out as GPT-2's: keys and values of its heads are one."""
    params = random_tree(GPT2)
    raw = gpt2_ggml(params=params)
    narrow = fused(params.blocks[0], "w")[: GPT2.d_model + 2 * GPT2.d_head]
    name = b"model/h0/attn/c_attn/w"
    head = struct.pack("<5i", 2, len(name), 0, 64, 192) + name
    at = raw.index(head)
    starcoder = raw[:at] + struct.pack("<5i", 2, len(name), 0, 64, len(narrow)) + name + narrow.tobytes()
    starcoder += raw[at + len(head) + 192 * 64 * 4 :]
    with pytest.raises(CheckpointError, match=r"c_attn/w is \[128, 64\], the configuration says \[192, 64\]"):
        open_checkpoint(write(tmp_path / "m.bin", starcoder))


@pytest.mark.parametrize("raw", [gpt2_ggml(), neox_ggml(), neox_ggml(old=True)], ids=["gpt2", "neox", "old"])
@pytest.mark.parametrize("change", [lambda raw: raw[:-5], lambda raw: raw + b"\0"], ids=["short", "long"])
def test_what_does_not_fit_to_the_last_byte_is_refused(tmp_path, raw, change):
    with pytest.raises(CheckpointError, match=r"m\.bin"):
        open_checkpoint(write(tmp_path / "m.bin", change(raw)))


def test_a_residual_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        open_checkpoint(write(tmp_path / "m.bin", neox_ggml(par_res=2)))


@pytest.mark.parametrize("make", [gpt2_ggml, neox_ggml, partial(neox_ggml, old=True)], ids=["gpt2", "neox", "old"])
@pytest.mark.parametrize(
    ("ftype", "encoding", "said"),
    [
        (2010, "f32", "this quantisation is not read; got q2_K"),
        (2, "q8_0", "the tensor's format is another than the file's"),
        (3002, "q4_0", "this version of the quantisation is not read"),
    ],
)
def test_the_reason_is_that_of_the_family_whose_file_it_is(tmp_path, make, ftype, encoding, said):
    """Its header and vocabulary fit, though no tensor could be read."""
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(write(tmp_path / "m.bin", make(ftype=ftype, encoding=encoding)))


# ---- earlier quantisations -----------------------------------------------------------------------------------------

VERSIONS = [
    (encoding, version) for encoding in EARLIER_TYPES for version in (0, 1) if version == 0 or encoding[3] < "2"
]


@pytest.mark.parametrize(("encoding", "version"), VERSIONS)
def test_files_of_earlier_versions(tmp_path, encoding, version):
    raw, held = earlier_ggml(CONFIG, state_dict(PARAMS), encoding, version)
    checkpoint = open_checkpoint(write(tmp_path / "m.bin", raw))
    want = state_dict(checkpoint.params.map(lambda name, leaf: widen(leaf)))
    assert {name: leaf.tobytes() for name, leaf in want.items()} == {name: x.tobytes() for name, x in held.items()}
    close = np.abs(held["transformer.h.0.mlp.fc_in.weight"] - PARAMS.blocks[0].w_in).max()
    assert close <= {"4": 0.12, "5": 0.06, "8": 0.01}[encoding[1]] * np.abs(PARAMS.blocks[0].w_in).max() * 1.2


@pytest.mark.parametrize(("encoding", "number"), [("q4_2", 5), ("q4_3", 6)])
def test_the_numbers_of_one_day(tmp_path, encoding, number):
    """On 22 April 2023 tensors were numbered as files are."""
    raw, held = earlier_ggml(CONFIG, state_dict(PARAMS), encoding, 0, number)
    params = open_checkpoint(write(tmp_path / "m.bin", raw)).params
    assert widen(params.wte).tobytes() == held["transformer.wte.weight"].tobytes()


@pytest.mark.parametrize(
    ("encoding", "version", "number"), [("q4_0", 0, 3), ("q5_0", 0, 5), ("q4_2", 0, 6), ("q8_0", 1, 2)]
)
def test_a_tensor_that_is_not_of_the_file_s_type_is_refused(tmp_path, encoding, version, number):
    raw, _ = earlier_ggml(CONFIG, state_dict(PARAMS), encoding, version, number)
    with pytest.raises(CheckpointError, match="format is"):
        open_checkpoint(write(tmp_path / "m.bin", raw))


def test_converting_an_earlier_file_keeps_its_numbers(tmp_path):
    raw, held = earlier_ggml(CONFIG, state_dict(PARAMS), "q4_0", 0)
    convert(open_checkpoint(write(tmp_path / "m.bin", raw)), None, tmp_path / "gguf", "gguf")
    params = open_checkpoint(tmp_path / "gguf").params
    assert widen(params.blocks[1].wk).tobytes() == held["transformer.h.1.attn.k_proj.weight"].tobytes()


@pytest.mark.parametrize("encoding", EARLIER)
def test_random_blocks_of_earlier_versions_decode_to_the_bit(encoding):
    kind, version = encoding.split(" v")
    blocks = RANDOM.integers(0, 256, (200, EARLIER[encoding].itemsize), np.uint8).view(EARLIER[encoding])
    for name in {"scale", "least"} & set(EARLIER[encoding].names):
        blocks[name] = RANDOM.standard_normal((200, 1)).astype(blocks[name].dtype)
    want = [decoded_earlier(kind, int(version), block.tobytes()) for block in blocks]
    assert decode(blocks, encoding).tobytes() == np.array(want, "<f4").tobytes()


# ---- q6_K ----------------------------------------------------------------------------------------------------------


def six_bits(n_rows: int, n_blocks: int) -> np.ndarray:
    blocks = RANDOM.integers(0, 256, (n_rows, n_blocks * 210), np.uint8).view(BLOCKS["q6_K"])
    blocks["scale"] = RANDOM.standard_normal(blocks.shape) / 1000
    return blocks


def test_random_blocks_of_q6_k_decode_to_the_bit():
    blocks = six_bits(60, 1)
    got = decode(blocks, "q6_K")
    assert got.tobytes() == np.array([decoded_q6_k(block.tobytes()) for block in blocks], "<f4").tobytes()
    assert (got == gguf.quants.dequantize(blocks.view(np.uint8), gguf.GGMLQuantizationType.Q6_K)).all()


@pytest.mark.parametrize("config", [replace(GPT2, d_model=256, d_ff=32), replace(NEOX, d_model=256, d_ff=32)])
def test_a_table_in_q6_k(tmp_path, config):
    """Written by the gguf library, which is another's."""
    params, name = random_tree(config), "gpt2" if config.model_type == "gpt2" else "gptneox"
    table = "token_embd.weight" if name == "gpt2" else "output.weight"
    blocks = six_bits(config.n_vocab, 1)
    plain = open_checkpoint(write(tmp_path / "plain.gguf", family_gguf(config, params)))
    reader = gguf.GGUFReader(tmp_path / "plain.gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", name)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name == table:
            writer.add_tensor(tensor.name, blocks.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config == plain.config
    found = checkpoint.params.wte if name == "gpt2" else checkpoint.params.w_head
    assert widen(found).tobytes() == decode(blocks, "q6_K").tobytes()
    convert(checkpoint, None, tmp_path / "again", "gguf")
    assert "q6_K" in {info.dtype for info in open_checkpoint(tmp_path / "again").tensors}
    convert(checkpoint, None, tmp_path / "hf", "hf")
    there = open_checkpoint(tmp_path / "hf").params
    assert widen(there.w_head).tobytes() == widen(checkpoint.params.w_head).tobytes()


# ---- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["f32", "f16", "q4_1", "q8_0"])
@pytest.mark.parametrize("config", [GPT2, NEOX])
def test_gguf_as_llama_cpp_writes_it(tmp_path, config, encoding):
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", family_gguf(config, random_tree(config), encoding)))
    assert replace(checkpoint.config, bos_id=None, eos_id=None) == replace(config, bos_id=None, eos_id=None)
    assert_holds(checkpoint, decoded(random_tree(config), encoding))


def test_a_head_that_gguf_has_twice(tmp_path):
    params = random_tree(GPT2)
    same = open_checkpoint(write(tmp_path / "same.gguf", family_gguf(GPT2, params, "q4_0", head=params.wte)))
    assert_holds(same, decoded(params, "q4_0"))
    with pytest.raises(CheckpointError, match="the head is another matrix"):
        open_checkpoint(write(tmp_path / "other.gguf", family_gguf(GPT2, params, head=params.wte + 1)))


def test_the_activation_that_gguf_does_not_tell_is_the_models(tmp_path, caplog):
    caplog.set_level("INFO", "refgpt")
    open_checkpoint(write(tmp_path / "m.gguf", family_gguf(NEOX, random_tree(NEOX))))
    assert "does not say which GELU" in caplog.text
    config = replace(NEOX, activation="gelu_new", rotary_base=500.0, bos_id=None)
    more = {"refgpt.activation": "gelu_new", "gptneox.rope.freq_base": 500.0, "refgpt.no_bos_token": True}
    path = write(tmp_path / "n.gguf", family_gguf(config, random_tree(NEOX), **more))
    assert open_checkpoint(path).config == config


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (NEOX, {"gptneox.rope.scaling.type": "linear"}, "not scaled"),
        (NEOX, {"gptneox.use_parallel_residual": 1}, "neither true nor false"),
        (NEOX, {"refgpt.activation": 3}, "no text"),
        (NEOX, {"refgpt.activation": "swish"}, "refgpt.activation"),
        (NEOX, {"gptneox.rope.dimension_count": None}, "lacks keys"),
        (NEOX, {"gptneox.feed_forward_length": 95}, "configuration says"),
        (GPT2, {"gpt2.block_count": None}, "lacks keys"),
        (GPT2, {"general.architecture": "mpt"}, "not supported"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path, config, changes, message):
    path = write(tmp_path / "m.gguf", family_gguf(config, random_tree(config), **changes))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(path)


# ---- whatever happens to a file ------------------------------------------------------------------------------------

SMALL = {"n_layer": 1, "d_model": 32, "d_ff": 32, "n_vocab": 11, "n_ctx": 6}
FILES = {
    "gpt2": gpt2_ggml(replace(GPT2, **SMALL), ftype=2002, encoding="q4_0"),
    "neox": neox_ggml(replace(NEOX, **SMALL, d_rotary=2)),
    "gpt2-gguf": family_gguf(replace(GPT2, **SMALL), random_tree(replace(GPT2, **SMALL)), "q5_0"),
    "neox-gguf": family_gguf(replace(NEOX, **SMALL), random_tree(replace(NEOX, **SMALL)), "q8_0"),
    "version 0": earlier_ggml(
        replace(CONFIG, **SMALL), {n: x[: 32 * 3] for n, x in state_dict(PARAMS).items()}, "q4_2", 0
    )[0],
}


def opens_properly(raw):
    def open_all(path):
        checkpoint, _ = open_model(path)
        for _, leaf in checkpoint.params.items():
            widen(leaf)

    return answers_properly(one_file(raw), open_all, 16 << 20)


@FAST
@given(st.sampled_from(sorted(FILES)).flatmap(lambda name: damaged(FILES[name])))
def test_damaged_files(raw):
    opens_properly(raw)
