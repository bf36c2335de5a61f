"""ggml and GGUF files opened as models: the same weights, and so the same logits, as where they came from."""

import shutil
import struct

import gguf
import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.files.ggml_blocks import Blocks
from refgpt.numbers.leaves import widen
from tests.helpers import ggml_writers
from tests.helpers.ggml_writers import (
    CONFIG,
    FILE_TYPES,
    PARAMS,
    QUANTISED,
    decoded,
    ggml_bytes,
    ggml_tensor,
    gguf_bytes,
    gguf_metadata,
    gguf_names,
    write,
)
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import state_dict, write_safetensors

IDS = [1, 30, 7, 7, 2, 36, 0]
ENCODINGS = ["f32", "f16", *QUANTISED]


def logits(path, **options):
    return refgpt.load(path, **options).logits(IDS)


def assert_holds(checkpoint, params):
    leaves = dict(checkpoint.params.items())
    for name, want in params.items():
        got = leaves[name]
        assert got.shape == want.shape and widen(got).tobytes() == widen(want).tobytes(), name
        assert isinstance(got, Blocks) or (not got.flags.writeable and not got.flags.owndata), name


@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["ggml", "gguf"])
def test_logits_are_those_of_the_stored_numbers(tmp_path, kind, encoding, backend):
    raw = ggml_bytes(encoding=encoding) if kind == "ggml" else gguf_bytes(encoding=encoding)
    path = write(tmp_path / "model.bin", raw)
    params = decoded(PARAMS, encoding)
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, params)
    assert checkpoint.config.n_layer == CONFIG.n_layer and checkpoint.config.d_ff == CONFIG.d_ff
    assert checkpoint.family == "gptj" and checkpoint.mask == "causal"
    assert {info.dtype for info in checkpoint.tensors} == {encoding, "f32"}
    assert {info.file for info in checkpoint.tensors} == {path}
    same = write_model(tmp_path / "hf", CONFIG, params)
    want = logits(same, backend=backend)
    assert logits(path, backend=backend).tobytes() == want.tobytes()


QUANTISED_2 = {"general.quantization_version": 2}


@pytest.mark.parametrize(
    ("raw", "format"),
    [
        (ggml_bytes(), "ggml"),
        (ggml_bytes(encoding="q4_0"), "ggml, quantisation version 2"),
        (gguf_bytes(), "GGUF, version 3"),
        (gguf_bytes(version=2), "GGUF, version 2"),
        (gguf_bytes(gguf_metadata(**QUANTISED_2), encoding="q8_0"), "GGUF, version 3, quantisation version 2"),
    ],
)
def test_the_version_is_told(tmp_path, raw, format):
    assert open_checkpoint(write(tmp_path / "model.bin", raw)).format == format


def test_bfloat16(tmp_path):
    params = random_params(CONFIG, seed=4, dtype="bf16")
    path = write(tmp_path / "model.gguf", gguf_bytes(tensors=gguf_names(params), encoding="bf16"))
    checkpoint = open_checkpoint(path)
    assert {leaf.dtype for _, leaf in checkpoint.params.items() if leaf.ndim == 2} == {params.wte.dtype}
    assert all(
        leaf.tobytes() == dict(params.items())[name].tobytes()
        for name, leaf in checkpoint.params.items()
        if leaf.ndim == 2
    )


@pytest.mark.parametrize("encoding", ["q4_0", "q8_0"])
def test_quantised_weights_may_be_kept_in_float16(tmp_path, encoding):
    path = write(tmp_path / "model.bin", ggml_bytes(encoding=encoding))
    rounded = decoded(PARAMS, encoding).map(lambda _, leaf: leaf.astype(np.float16) if leaf.ndim == 2 else leaf)
    assert logits(path, dtype="f16").tobytes() == logits(write_model(tmp_path / "hf", CONFIG, rounded)).tobytes()


def test_the_tree_of_a_6b_model(tmp_path):
    """285 tensors under their names, 28 blocks; small, but for the shape of the tree."""
    config = tiny_config(n_layer=28, d_model=32, d_ff=64, n_head=4, n_vocab=5, n_ctx=2048)
    params = random_params(config, seed=1)
    raw = ggml_bytes(config, params)
    assert_holds(open_checkpoint(write(tmp_path / "a", raw)), params)
    checkpoint = open_checkpoint(write(tmp_path / "b", gguf_bytes(gguf_metadata(config), gguf_names(params))))
    assert_holds(checkpoint, params)
    assert len(checkpoint.tensors) == 285


def test_tensors_may_come_in_any_order(tmp_path):
    state = dict(reversed(state_dict(PARAMS).items()))
    assert_holds(open_checkpoint(write(tmp_path / "a", ggml_bytes(tensors=state))), PARAMS)


def test_the_configuration(tmp_path):
    tokens = [b"<|endoftext|>", *(b"%d" % i for i in range(36))]
    config = open_checkpoint(write(tmp_path / "a", ggml_bytes(tokens=tokens))).config
    assert (config.bos_id, config.eos_id) == (0, 0) and config.ln_eps == 1e-5
    assert open_checkpoint(write(tmp_path / "b", ggml_bytes())).config == CONFIG
    wide = tiny_config(n_vocab=50400, d_model=32, d_ff=32, n_head=2, n_layer=1)
    raw = ggml_bytes(wide, random_params(wide, 1, "f16"), "f16", tokens=[b""] * 50400)
    assert open_checkpoint(write(tmp_path / "c", raw)).config.eos_id == 50256

    keys = gguf_metadata(
        **{
            "tokenizer.ggml.eos_token_id": 5,
            "tokenizer.ggml.bos_token_id": 4,
            "gptj.feed_forward_length": None,
            "gptj.attention.layer_norm_epsilon": 3e-6,
        }
    )
    config = open_checkpoint(write(tmp_path / "d", gguf_bytes(keys))).config
    assert (config.bos_id, config.eos_id, config.d_ff, config.ln_eps) == (4, 5, CONFIG.d_ff, 3e-6)
    old = gguf_metadata(**{"gptj.block_count": None, "gptj.layer_count": 2, "gptj.attention.layer_norm_epsilon": None})
    config = open_checkpoint(write(tmp_path / "e", gguf_bytes(old, version=2))).config
    assert config.n_layer == 2 and config.ln_eps == 1e-5 and config.eos_id is None


@pytest.mark.parametrize(
    ("name", "metadata", "mask"),
    [
        ("ggml-model.bin", None, "causal"),
        ("ggml-gpt-jt-6b-q4_0.bin", None, "prefix"),
        ("model.gguf", {"general.name": "GPT-JT-6B-v1"}, "prefix"),
        ("GPT_JT.gguf", {"general.name": "GPT-J"}, "prefix"),
        ("model.gguf", {"refgpt.mask": "prefix"}, "prefix"),
        ("gpt-jt.gguf", {"refgpt.mask": "causal"}, "causal"),
    ],
)
def test_the_mask(tmp_path, name, metadata, mask):
    raw = ggml_bytes() if metadata is None else gguf_bytes(gguf_metadata(**metadata))
    (tmp_path / "download").mkdir()  # pytest's own directory is called after the case
    path = write(tmp_path / "download" / name, raw)
    assert open_checkpoint(path).mask == mask
    assert open_checkpoint(path, "causal").mask == "causal" and open_checkpoint(path, "prefix").mask == "prefix"


def test_a_directory_with_one_file(tmp_path):
    write(tmp_path / "ggml-model-f16.bin", ggml_bytes(encoding="f16"))
    (tmp_path / "README.md").write_text("x")
    assert open_checkpoint(tmp_path).format == "ggml"
    write(tmp_path / "another.bin", ggml_bytes())
    with pytest.raises(CheckpointError, match=r"several models.*another\.bin, ggml-model-f16\.bin"):
        open_checkpoint(tmp_path)
    write_model(tmp_path, CONFIG, PARAMS)
    assert open_checkpoint(tmp_path).format.startswith("Hugging Face")
    shutil.copy(tmp_path / "another.bin", tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path / "pytorch_model.bin").format == "ggml"


CHANGES = {  # of a GGUF's metadata: what is refused, and a word of why
    "another model": ({"general.architecture": "llama"}, "llama"),
    "no architecture": ({"general.architecture": None}, "None"),
    "no heads": ({"gptj.attention.head_count": None}, "head_count"),
    "text for a number": ({"gptj.block_count": "two"}, "block_count"),
    "more layers": ({"gptj.block_count": 3}, "blk.2.attn_norm.weight"),
    "fewer layers": ({"gptj.block_count": 1}, "no place in GPT-J"),
    "another width": ({"gptj.embedding_length": 32}, "the configuration says"),
    "odd heads": ({"gptj.attention.head_count": 5}, "d_model"),
    "shared keys": ({"gptj.attention.head_count_kv": 1}, "share"),
    "scaled": ({"gptj.rope.scale": 0.5}, "scaled"),
    "scaled as yarn": ({"gptj.rope.scaling.type": "yarn"}, "yarn"),
    "another base": ({"gptj.rope.freq_base": 5000.0}, "5000"),
    "sequential": ({"gptj.use_parallel_residual": False}, "False"),
    "split": ({"split.count": 3}, "llama-gguf-split"),
    "another quantisation": ({"general.quantization_version": 1}, "laid out otherwise"),
    "another mask": ({"refgpt.mask": "both"}, "causal or prefix"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_gguf_of_something_else_is_refused(tmp_path, case):
    changes, why = CHANGES[case]
    path = write(tmp_path / "model.gguf", gguf_bytes(gguf_metadata(**changes)))
    with pytest.raises((ConfigError, CheckpointError), match=why) as error:
        open_checkpoint(path)
    assert "model.gguf" in str(error.value)


def test_what_does_no_harm_is_let_be(tmp_path):
    more = {
        "gptj.rope.scale": 1.0,
        "gptj.rope.freq_base": 10000.0,
        "general.quantization_version": 2,
        "gptj.attention.head_count_kv": CONFIG.n_head,
        "x.y": [3, 4],
        "split.count": 0,
    }
    assert open_checkpoint(write(tmp_path / "m.gguf", gguf_bytes(gguf_metadata(**more)))).config == CONFIG


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("version", [3])
def test_other_versions_of_quantisation_are_refused_by_name(tmp_path, encoding, version):
    path = write(tmp_path / "old.bin", ggml_bytes(encoding=encoding, version=version))
    with pytest.raises(CheckpointError, match=f"{encoding} of version {version}.*version 2.*convert the original"):
        open_checkpoint(path)


def test_the_version_says_nothing_about_floats(tmp_path):
    assert_holds(open_checkpoint(write(tmp_path / "f32.bin", ggml_bytes(version=1))), PARAMS)


@pytest.mark.parametrize(
    ("ftype", "name"), [(1005, "q4_2"), (2006, "q4_3"), (2010, "q2_K"), (1014, "q6_K"), (77, "unknown")]
)
def test_other_quantisations_are_refused_by_name(tmp_path, ftype, name):
    with pytest.raises(CheckpointError, match=f"not read.*{name} .*convert the original"):
        open_checkpoint(write(tmp_path / "x.bin", ggml_bytes(ftype=ftype)))


@pytest.mark.parametrize(("number", "name"), [(4, "q4_2"), (12, "q4_K"), (31, "type 31")])
def test_a_tensor_of_another_type_is_refused_by_name(tmp_path, number, name):
    at, before = struct.pack("<3i", 2, len("transformer.wte.weight"), 0), ggml_bytes()
    raw = before.replace(at, at[:8] + struct.pack("<i", number), 1)
    assert raw != before
    with pytest.raises(CheckpointError, match=f"wte.weight.*not read.*{name}"):
        open_checkpoint(write(tmp_path / "x.bin", raw))


OTHERS = {  # first bytes of other files: what the message calls them
    "ggmf": (b"fmgg" + bytes(60), "ggmf"),
    "ggjt": (b"tjgg" + bytes(60), "ggjt"),
    "ggla": (b"algg" + bytes(60), "ggla"),
    "safetensors": (struct.pack("<Q", 40) + b'{"a":' + bytes(60), "safetensors"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
    "old torch": (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" + bytes(60), "torch before 1.6"),
    "noise": (b"12345678" + bytes(60), "12345678"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_bad_magic_is_called_by_its_name(tmp_path, case):
    raw, name = OTHERS[case]
    path = write(tmp_path / "model.bin", raw)
    if case in ("ggmf", "ggjt", "ggla", "hdf5"):  # a config.json would not help, so none is missed
        with pytest.raises(CheckpointError, match=f"bad magic.*{name}"):
            open_checkpoint(path)
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    with pytest.raises(CheckpointError, match=f"bad magic.*{name}"):
        open_checkpoint(path)


def test_files_of_other_models_are_refused(tmp_path):
    """Headers as ggml's other examples write them: LLaMA's is an early GPT-NeoX's. The tensors fit no family."""
    tokens = b"".join(struct.pack("<i", 3) + b"abc" for _ in range(50))
    llama = struct.pack("<8i", 0x67676D6C, 50, 32, 16, 4, 2, 8, 0) + tokens
    gpt2 = struct.pack("<7i", 0x67676D6C, 50, 16, 32, 4, 2, 1) + struct.pack("<i", 50) + tokens
    neox = struct.pack("<9i", 0x67676D6C, 50, 16, 32, 4, 2, 8, 1, 1) + tokens
    for n, (raw, title) in enumerate(((llama, "GPT-NeoX"), (gpt2, "GPT-2"), (neox, "GPT-NeoX"))):
        path = write(tmp_path / f"{n}.bin", raw + ggml_tensor("x", np.ones((2, 2)), "f32"))
        with pytest.raises(CheckpointError, match=rf"no {title}'s ggml file; got no tensor .*LLaMA, MPT"):
            open_checkpoint(path)
    state = {name.replace("transformer.h.", "model/h"): tensor for name, tensor in state_dict(PARAMS).items()}
    with pytest.raises(CheckpointError, match=r"no tensor transformer\.h\.0\.mlp\.fc_in\.bias.*LLaMA, MPT"):
        open_checkpoint(write(tmp_path / "names.bin", ggml_bytes(tensors=state)))


def test_tensors_that_do_not_fit(tmp_path):
    state = state_dict(PARAMS)
    del state["lm_head.bias"]
    with pytest.raises(CheckpointError, match=r"1 of 25 tensors of a GPT-J are missing.*lm_head.bias"):
        open_checkpoint(write(tmp_path / "a.bin", ggml_bytes(tensors=state)))
    with pytest.raises(CheckpointError, match=r"no place in GPT-J.*extra"):
        open_checkpoint(write(tmp_path / "b.gguf", gguf_bytes(tensors=gguf_names() | {"extra": PARAMS.ln_b})))
    with pytest.raises(CheckpointError, match="more in the file than a GPT-J has"):
        whole = state_dict(PARAMS) | {"extra": PARAMS.ln_b}
        open_checkpoint(write(tmp_path / "c.bin", ggml_bytes(tensors=whole)))
    with pytest.raises(CheckpointError, match=r"wte\.weight.*twice"):
        twice = ggml_tensor("transformer.wte.weight", PARAMS.wte, "f32")
        open_checkpoint(write(tmp_path / "d.bin", ggml_bytes(tensors=state) + twice))
    with pytest.raises(CheckpointError, match=r"wte.weight is \[37, 64\].*\[37, 128\]"):
        open_checkpoint(write(tmp_path / "e.bin", ggml_bytes(n_embd=128)))


def test_the_library_reads_what_the_writer_writes(tmp_path):
    """The writer of these tests is ours; the gguf library vouches for it, and so for the reader."""
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf", gguf_bytes(encoding="q5_1")))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    want = gguf_names(decoded(PARAMS, "q5_1"))
    assert tensors.keys() == want.keys()
    for name, tensor in tensors.items():
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert got.shape == want[name].shape and (got == want[name]).all(), name
    assert reader.get_field("gptj.block_count").contents() == 2


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *(name.upper() for name in QUANTISED)])
def test_files_of_the_library_are_read(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gptj")
    writer.add_name("GPT-J")
    writer.add_context_length(CONFIG.n_ctx)
    writer.add_embedding_length(CONFIG.d_model)
    writer.add_block_count(CONFIG.n_layer)
    writer.add_feed_forward_length(CONFIG.d_ff)
    writer.add_head_count(CONFIG.n_head)
    writer.add_rope_dimension_count(CONFIG.d_rotary)
    writer.add_layer_norm_eps(CONFIG.ln_eps)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    name_map, want = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTJ, CONFIG.n_layer), {}
    for name, tensor in state_dict(PARAMS).items():
        its = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(tensor, its)
        want[name] = gguf.quants.dequantize(raw, its)
        writer.add_tensor(name_map.get_name(name, try_suffixes=(".weight", ".bias")), raw, raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config == CONFIG
    got = state_dict(checkpoint.params)
    assert all((widen(got[name]) == want[name]).all() for name in want)


@pytest.mark.parametrize("encoding", ["f16", "q8_0"])
def test_memory_of_a_mapped_matrix_is_given_back(tmp_path, resident_bytes, encoding, monkeypatch):
    config = tiny_config(n_layer=1, d_model=1024, d_ff=4096, n_head=4, n_vocab=2000)
    zeros = {"q8_0": lambda _, tensor: bytes(tensor.size // 32 * 34)}  # the tests' quantiser takes its time
    if encoding in zeros:
        plain = ggml_writers.tensor_bytes
        monkeypatch.setattr(ggml_writers, "tensor_bytes", lambda kind, x: zeros.get(kind, plain)(kind, x))
    raw = ggml_bytes(config, random_params(config, 1, "f16"), encoding)
    path = write(tmp_path / "m.bin", raw)
    before = resident_bytes()
    for _, leaf in open_checkpoint(path).params.items():
        widen(leaf).sum()
        refgpt.numbers.mapped.release(leaf)
    assert resident_bytes() - before < len(raw) // 2


def test_a_file_type_of_every_encoding():
    assert set(FILE_TYPES) == {"f32", "f16", *QUANTISED}


def test_safetensors_called_bin(tmp_path):
    write_safetensors(tmp_path / "x.bin", state_dict(PARAMS))
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    with pytest.raises(CheckpointError, match="a safetensors file"):
        open_checkpoint(tmp_path / "x.bin")


LETTERS = ["<|endoftext|>", *"abcdefghij", "\u0120", "\u010a", "ab", "\u0120a", "\u00c3", "\u00a9", "<|x|>", "<y>"]
RAW = [
    b"<|endoftext|>",
    *(bytes([c]) for c in b"abcdefghij"),
    b" ",
    b"\n",
    b"ab",
    b" a",
    b"\xc3",
    b"\xa9",
    b"<|x|>",
    b"<y>",
]
TOKENIZER = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b", "\u0120 a"]}


@pytest.mark.parametrize("tokens", [LETTERS, RAW], ids=["letters", "bytes"])
def test_a_ggufs_own_tokenizer(tmp_path, tokens, caplog):
    padded = [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), CONFIG.n_vocab))]
    keys = gguf_metadata(**TOKENIZER, **{"tokenizer.ggml.tokens": padded, "tokenizer.ggml.eos_token_id": 0})
    path = write(tmp_path / "m.gguf", gguf_bytes(keys))
    (tmp_path / "tokenizer.json").write_text("another's, which is not looked at")
    tokenizer = refgpt.load(path).tokenizer
    assert tokenizer.encode("ab a\n\u00e9<|x|><|endoftext|>") == [13, 14, 12, 15, 16, 17, 0]
    assert tokenizer.decode([13, 14, 12, 15, 16, 17, 0]) == "ab a\n\u00e9<|x|><|endoftext|>"
    assert tokenizer.n_vocab == len(tokens) and tokenizer.eos_id == 0
    assert not caplog.records


def test_types_of_a_ggufs_tokens(tmp_path):
    """4, user-defined: looked for first, and no letters; 5, unused: none."""
    types = np.ones(len(LETTERS) + 1, "<i4")
    types[[0, 18, 19]], types[10] = [3, 4, 4], 5
    keys = {"tokenizer.ggml.tokens": [*LETTERS, "\t"], "tokenizer.ggml.token_type": types}
    path = write(tmp_path / "m.gguf", gguf_bytes(gguf_metadata(**TOKENIZER, **keys)))
    tokenizer = refgpt.load(path).tokenizer
    assert tokenizer.encode("a<y>b\t a") == [1, 18, 2, 19, 14] and not tokenizer.exists[10]


def test_a_gguf_without_a_tokenizer_of_this_kind(tmp_path):
    keys = gguf_metadata(**{"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]})
    assert refgpt.load(write(tmp_path / "m.gguf", gguf_bytes(keys))).tokenizer is None
    write_tokenizer(tmp_path)
    assert refgpt.load(tmp_path / "m.gguf").tokenizer.encode("A") == [3]


def test_a_ggml_files_own_tokenizer(tmp_path, caplog):
    tokens = [*RAW, *(b"" for _ in range(CONFIG.n_vocab - len(RAW)))]
    model = refgpt.load(write(tmp_path / "m.bin", ggml_bytes(tokens=tokens)))
    assert "greedily" in caplog.text
    assert model.tokenizer.encode("ab a\n\u00e9<|endoftext|>") == [13, 14, 12, 15, 16, 0]
    assert model.config.eos_id == 0 and isinstance(model.generate("ab", max_new_tokens=4, seed=1).text, str)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert refgpt.load(tmp_path / "m.bin").tokenizer.encode("ab a") == [13, 11, 1]  # " a" is no merge's
