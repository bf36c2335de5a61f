"""What is written holds every bit of what was read, in formats that other programs' libraries read alike."""

import json
import tracemalloc
from dataclasses import replace

import gguf as gguf_library
import numpy as np
import pytest
import safetensors

import refgpt
from refgpt._common.errors import CheckpointError
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.conversion import gguf, huggingface
from refgpt.conversion.leaves import written
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.tokenizers import tokenizer_of
from tests.helpers import ggml_writers
from tests.helpers.ggml_writers import CONFIG, PARAMS, QUANTISED, decoded, ggml_bytes, gguf_bytes
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import buffers, config_json, state_dict, write_safetensors

IDS = [1, 30, 7, 7, 2, 36, 0]
TARGETS = {"hf": huggingface, "gguf": gguf}


def source(directory, params=PARAMS, tensors=None, **config):
    directory.mkdir()
    write_safetensors(directory / "model.safetensors", state_dict(params) if tensors is None else tensors)
    (directory / "config.json").write_text(json.dumps(config_json(CONFIG, **config)))
    return directory


def converted(path, to, directory, dtype=None, mask="auto", progress=None):
    directory.mkdir()
    checkpoint, tokenizer = open_model(path, mask)
    TARGETS[to].write(checkpoint, tokenizer, dtype, directory, progress)
    return directory


def assert_same_bits(path, params):
    got = dict(open_checkpoint(path).params.items())
    for name, want in params.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape, name
        assert got[name].tobytes() == want.tobytes(), name


def mixed():
    """Matrices in float16, vectors in float32, as converters to ggml leave them."""
    return PARAMS.map(lambda _, leaf: leaf.astype("<f2") if leaf.ndim == 2 else leaf)


def unlike():
    """Matrices of more than one dtype."""
    narrow = random_params(CONFIG, 2, "bf16")
    return replace(PARAMS, wte=narrow.wte, blocks=(narrow.blocks[0], PARAMS.blocks[1]))


KINDS = {
    "f32": lambda: PARAMS,
    "f16": lambda: random_params(CONFIG, 3, "f16"),
    "bf16": lambda: random_params(CONFIG, 3, "bf16"),
    "f16 with f32 vectors": mixed,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bit(tmp_path, kind):
    params = KINDS[kind]()
    start = source(tmp_path / "a", params)
    middle = converted(start, "gguf", tmp_path / "b")
    end = converted(middle, "hf", tmp_path / "c")
    assert_same_bits(end, params)
    assert_same_bits(converted(end, "hf", tmp_path / "d"), params)
    want = refgpt.load(start).logits(IDS).tobytes()
    assert refgpt.load(middle).logits(IDS).tobytes() == refgpt.load(end).logits(IDS).tobytes() == want
    assert open_checkpoint(middle).config == open_checkpoint(end).config == CONFIG


def test_matrices_of_several_dtypes_stay_as_they_are(tmp_path):
    """Vectors that one of these dtypes holds exactly may be in that."""
    start = source(tmp_path / "a", unlike())
    first = converted(start, "hf", tmp_path / "b")
    last = converted(converted(first, "gguf", tmp_path / "c"), "hf", tmp_path / "d")
    for path in (first, last):
        for (name, got), (_, want) in zip(open_checkpoint(path).params.items(), unlike().items(), strict=True):
            assert got.dtype == want.dtype, name
            assert got.tobytes() == want.tobytes(), name


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_dtype_that_is_asked_for(tmp_path, kind, dtype, to):
    """Against the rounding of the tests' own; and again it changes nothing."""
    params = KINDS[kind]()
    once = converted(source(tmp_path / "a", params), to, tmp_path / "b", dtype)
    again = converted(once, to, tmp_path / "c", dtype)
    for path in (once, again):
        for name, got in open_checkpoint(path).params.items():
            wide = widen(dict(params.items())[name])
            if got.ndim == 1:
                assert widen(got).tobytes() == wide.tobytes()
                continue
            assert got.dtype == {"f32": np.float32, "f16": np.float16, "bf16": BFLOAT16}[dtype]
            assert (widen(got) == wide.astype("<f2") if dtype == "f16" else nearest_bfloat16(wide)).all()
            if dtype == "f32":
                assert (widen(got) == wide).all()


def nearest_bfloat16(x):
    """By search among both neighbours in float64; a tie goes to the even one."""
    low = (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    high = ((low.view(np.uint32) + 0x10000).astype(np.uint32)).view(np.float32)
    to_low, to_high = np.abs(x.astype("<f8") - low), np.abs(x.astype("<f8") - high)
    even = (low.view(np.uint32) >> 16) % 2 == 0
    return np.where((to_low < to_high) | ((to_low == to_high) & even), low, high)


def test_rounding_to_bfloat16_is_to_nearest_even_even_from_float64():
    tie, bit = 1 + 2**-8, 2**-40  # half way between 1 and 1 + 2^-7
    rows = np.array([[1.0, tie, tie + 2**-7, tie + bit, tie - bit, tie + 2**-7 - bit, -tie - bit]])
    (got,) = written("w", rows, "bf16")
    assert widen(got).tolist() == [[1.0, 1.0, 1 + 2**-6, 1 + 2**-7, 1.0, 1 + 2**-7, -1 - 2**-7]]
    single = np.random.default_rng(1).standard_normal((100, 100)).astype("<f4")
    (got,) = written("w", single, "bf16")
    assert (widen(got) == nearest_bfloat16(single)).all()


@pytest.mark.parametrize("to", TARGETS)
def test_float64_is_rounded_for_gguf_and_kept_for_hf(tmp_path, to):
    wide = PARAMS.map(lambda _, leaf: leaf.astype("<f8") * 1.1)
    path = converted(source(tmp_path / "a", wide), to, tmp_path / "b")
    assert_same_bits(path, wide if to == "hf" else wide.map(lambda _, leaf: leaf.astype("<f4")))


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, None), (np.inf, None), (1e6, "f16"), (3.4e38, "bf16")])
def test_what_a_dtype_cannot_hold_is_refused(tmp_path, to, bad, dtype):
    spoilt = PARAMS.map(lambda _, leaf: leaf.copy())
    spoilt.blocks[1].wo[3, 4] = bad
    path = source(tmp_path / "a", spoilt)
    why = "NaN or infinity" if dtype is None else f"numbers that {dtype} cannot"
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*h\.1\.attn\.out_proj.*{why}"):
        converted(path, to, tmp_path / "b", dtype)


@pytest.mark.parametrize("to", TARGETS)
def test_the_prefix_mask_survives(tmp_path, to):
    ones = np.ones((CONFIG.n_ctx, CONFIG.n_ctx), "u1")
    path = source(tmp_path / "a", tensors=state_dict(PARAMS) | buffers(ones))
    first = converted(path, to, tmp_path / "b")
    second = converted(first, "hf", tmp_path / "c")
    third = converted(second, "gguf", tmp_path / "d")
    assert [open_checkpoint(each).mask for each in (path, first, second, third)] == ["prefix"] * 4
    causal = converted(path, to, tmp_path / "e", mask="causal")
    assert open_checkpoint(causal).mask == "causal"
    with safetensors.safe_open(second / "model.safetensors", "np") as file:
        masks = [name for name in file.keys() if name.endswith("attn.bias")]  # noqa: SIM118
        assert len(masks) == CONFIG.n_layer
        mask = file.get_tensor(masks[0])
        assert mask.dtype == bool and mask.shape == (1, 1, CONFIG.n_ctx, CONFIG.n_ctx) and mask.all()


@pytest.mark.parametrize("encoding", QUANTISED)
def test_quantised_matrices_stay_in_gguf_and_are_decoded_for_hf(tmp_path, encoding):
    (tmp_path / "m.bin").write_bytes(ggml_bytes(encoding=encoding))
    path = converted(tmp_path / "m.bin", "gguf", tmp_path / "a")
    reader = gguf_library.GGUFReader(path / "model.gguf")
    want = ggml_writers.gguf_names(PARAMS)
    for tensor in reader.tensors:
        kind = encoding if len(tensor.shape) == 2 else "f32"
        assert tensor.tensor_type.name.lower() == kind
        assert tensor.data.tobytes() == ggml_writers.tensor_bytes(kind, want[tensor.name]), tensor.name
    assert reader.get_field("general.quantization_version").contents() == 2
    assert_same_bits(converted(path, "hf", tmp_path / "b"), decoded(PARAMS, encoding))
    small = converted(path, "gguf", tmp_path / "c", "f16")
    assert open_checkpoint(small).params.wte.dtype == np.float16


def test_every_tensor_is_aligned(tmp_path):
    """97 numbers in float16 come before others in float32 in the order of the forward pass."""
    config = replace(CONFIG, d_ff=97, n_layer=1)
    params = random_params(config, 1).map(lambda _, leaf: leaf.astype("<f2") if leaf.ndim == 2 else leaf)
    zeros = np.zeros(97, "<f4")  # exact in float16
    params = replace(params, blocks=tuple(replace(block, b_in=zeros) for block in params.blocks))
    path = converted(write_model(tmp_path / "a", config, params), "hf", tmp_path / "b") / "model.safetensors"
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["transformer.h.0.mlp.fc_in.bias"]["dtype"] == "F16"
    sizes = {"F32": 4, "F16": 2}
    assert all(
        entry["data_offsets"][0] % sizes[entry["dtype"]] == 0
        for name, entry in header.items()
        if name != "__metadata__"
    )


@pytest.mark.parametrize("encoding", ["q4_0", "q5_1"])
@pytest.mark.parametrize("to", TARGETS)
def test_blocks_with_a_scale_that_is_no_number_are_refused(tmp_path, encoding, to):
    tensor = np.frombuffer(ggml_writers.tensor_bytes(encoding, PARAMS.wte), np.uint8)
    raw = bytearray(ggml_bytes(encoding=encoding))
    at = raw.index(tensor.tobytes())
    raw[at + 18 * 4 : at + 18 * 4 + 2] = b"\x00\x7e"  # of q4_0's fifth block, the scale; of q5_1's fourth, the numbers
    if encoding == "q5_1":
        raw[at + 24 * 4 + 2 : at + 24 * 4 + 4] = b"\x00\x7e"  # of the fifth, the least
    (tmp_path / "m.bin").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"wte\.weight.*NaN"):
        converted(tmp_path / "m.bin", to, tmp_path / "a")


@pytest.mark.parametrize("largest", [1 << 10, 1 << 14, 1 << 16])
def test_shards(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(huggingface, "LARGEST_SHARD", largest)
    params = mixed()
    path = converted(source(tmp_path / "a", params), "hf", tmp_path / "b")
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 1 and files[-1].name == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for _, leaf in params.items())
    for file in files:
        with safetensors.safe_open(file, "np") as shard:
            names = list(shard.keys())
            assert {index["weight_map"][name] for name in names} == {file.name}
            assert len(names) == 1 or sum(shard.get_tensor(name).nbytes for name in names) <= largest
    assert_same_bits(path, params)


def test_the_libraries_read_the_same(tmp_path):
    start = write_tokenizer(source(tmp_path / "a", mixed()))
    vocab = json.loads((start / "vocab.json").read_text())
    (start / "vocab.json").write_text(json.dumps(dict(list(vocab.items())[: CONFIG.n_vocab])))
    path = converted(start, "hf", tmp_path / "b")
    with safetensors.safe_open(path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        n_header = int.from_bytes((path / "model.safetensors").read_bytes()[:8], "little")
        assert n_header % 8 == 0  # the library's own way, by which every tensor is aligned
        assert {name: file.get_tensor(name).tobytes() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tobytes() for name, tensor in state_dict(mixed()).items()
        }
    reader = gguf_library.GGUFReader(converted(start, "gguf", tmp_path / "c") / "model.gguf")
    want = ggml_writers.gguf_names(mixed())
    assert {tensor.name for tensor in reader.tensors} == want.keys()
    for tensor in reader.tensors:
        assert tensor.data.shape == want[tensor.name].shape and tensor.data.tobytes() == want[tensor.name].tobytes()
        assert tensor.data_offset % 32 == 0
    fields = {name: field.contents() for name, field in reader.fields.items()}
    names = gguf_library.Keys
    assert fields[names.General.ARCHITECTURE] == "gptj" and fields[names.General.FILE_TYPE] == 1
    assert fields[names.LLM.BLOCK_COUNT.format(arch="gptj")] == CONFIG.n_layer
    assert fields[names.LLM.FEED_FORWARD_LENGTH.format(arch="gptj")] == CONFIG.d_ff
    assert fields[names.Rope.DIMENSION_COUNT.format(arch="gptj")] == CONFIG.d_rotary
    assert fields[names.Tokenizer.MODEL] == "gpt2" and fields[names.Tokenizer.MERGES] == []
    assert fields[names.Tokenizer.LIST][:4] == ["<|endoftext|>", "\u010a", "\u0120", "A"]
    assert fields[names.Tokenizer.TOKEN_TYPE][:2] == [gguf_library.TokenType.CONTROL, gguf_library.TokenType.NORMAL]
    assert json.loads(fields[names.Tokenizer.HF_JSON])["model"]["type"] == "BPE"


def test_the_configuration_is_carried_along(tmp_path):
    start = source(
        tmp_path / "a",
        task_specific_params={"text-generation": {"max_length": 50}},
        _name_or_path="x/y",
        dtype="float64",
        n_inner=None if CONFIG.d_ff == 4 * CONFIG.d_model else CONFIG.d_ff,
    )
    (start / "generation_config.json").write_text('{"do_sample": true}')
    path = converted(start, "hf", tmp_path / "b", "bf16")
    config = json.loads((path / "config.json").read_text())
    assert config["task_specific_params"]["text-generation"] == {"max_length": 50}
    assert config["torch_dtype"] == "bfloat16" and "dtype" not in config and "_name_or_path" not in config
    assert config["n_inner"] == CONFIG.d_ff and config["architectures"] == ["GPTJForCausalLM"]
    assert json.loads((path / "generation_config.json").read_text()) == {"do_sample": True}
    assert open_checkpoint(path).config == CONFIG
    from_gguf = converted(converted(start, "gguf", tmp_path / "c"), "hf", tmp_path / "d")
    assert open_checkpoint(from_gguf).config == CONFIG


@pytest.mark.parametrize("ends", [(None, None), (None, 7), (50256, None), (3, 50256)])
def test_that_no_token_ends_a_text_is_carried_along(tmp_path, ends):
    """In a vocabulary that has GPT-J's."""
    config = tiny_config(n_vocab=50260, n_layer=1, bos_id=ends[0], eos_id=ends[1])
    start = write_model(tmp_path / "a", config, random_params(config, 1))
    assert open_checkpoint(converted(start, "gguf", tmp_path / "b")).config == config


def assert_same_tokenizer(path, want):
    assert_same(open_model(path)[1], want)


def assert_same(got, want):
    assert (got.n_vocab, got.eos_id) == (want.n_vocab, want.eos_id) and (got.exists == want.exists).all()
    for text in ("It's a toad!\n", "", "one <|endoftext|> two", "  spaces", "two words<|user|>a"):
        try:
            ids = want.encode(text)
        except refgpt.RefgptError:
            continue
        assert got.encode(text) == ids and got.decode(ids) == want.decode(ids)
    assert all(got.token_bytes(n) == want.token_bytes(n) for n in range(want.n_vocab) if want.exists[n])


def test_a_byte_level_tokenizer_is_carried_along(tmp_path):
    config = replace(CONFIG, n_vocab=70)
    start = write_tokenizer(write_model(tmp_path / "a", config, random_params(config, 1)))
    n = len(json.loads((start / "vocab.json").read_text()))
    (start / "added_tokens.json").write_text(json.dumps({"<|user|>": n, "two words": n + 2}))
    want = open_model(start)[1]
    assert not want.exists[n + 1] and want.encode("two words") == [n + 2]
    same = converted(start, "hf", tmp_path / "b")
    assert (same / "vocab.json").read_bytes() == (start / "vocab.json").read_bytes()
    for path in (same, middle := converted(start, "gguf", tmp_path / "c"), converted(middle, "hf", tmp_path / "d")):
        assert_same_tokenizer(path, want)
    vocabulary = open_checkpoint(middle).vocabulary
    lists = tokenizer_of(replace(vocabulary, files={}), middle)  # as other programs read them
    assert_same(lists, want)
    assert [tokenizer.describe().partition(", from ")[2] for tokenizer in (open_model(middle)[1], lists)] == [
        "tokenizer.json in model.gguf",
        "the vocabulary and merges in model.gguf",
    ]


def test_the_default_model_through_both_formats(tmp_path):
    """Its tokenizer is sentencepiece's, of which GGUF's own keys tell only a part."""
    start = refgpt.default_model_path()
    want = open_model(start)[1]
    assert want.describe() == "sentencepiece, 4096 ids, from tokenizer.model"
    middle = converted(start, "gguf", tmp_path / "b")
    assert_same_tokenizer(middle, want)
    assert open_model(middle)[1].describe() == "sentencepiece, 4096 ids, from tokenizer.model in model.gguf"
    end = converted(middle, "hf", tmp_path / "c")
    assert_same_tokenizer(end, want)
    assert (end / "tokenizer.model").read_bytes() == (start / "tokenizer.model").read_bytes()
    assert_same_bits(end, open_checkpoint(start).params)
    settings = {"max_new_tokens": 20, "seed": 3}
    assert refgpt.load(middle).generate("Once", **settings).text == refgpt.load(start).generate("Once", **settings).text


def test_a_ggml_files_vocabulary_is_carried_along(tmp_path, caplog):
    tokens = [b"<|endoftext|>", *(bytes([c]) for c in b"abcdefghij \n\xc3\xa9"), b"ab", *[b""] * 21]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.bin").write_bytes(ggml_bytes(tokens=tokens))
    greedy = converted(tmp_path / "m", "gguf", tmp_path / "b")
    assert open_model(greedy)[1].encode("ab a\n\u00e9") == [15, 11, 1, 12, 13, 14]
    assert not list(converted(tmp_path / "m", "hf", tmp_path / "c").glob("tokenizer*"))
    assert "no merges, so no tokenizer is written" in caplog.text
    (tmp_path / "m" / "merges.txt").write_text("a b\n")
    want = open_model(tmp_path / "m")[1]
    path = converted(converted(tmp_path / "m", "gguf", tmp_path / "d"), "hf", tmp_path / "e")
    assert_same_tokenizer(path, want)
    assert (path / "tokenizer.json").is_file() and (path / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("to", TARGETS)
def test_progress_and_memory(tmp_path, to):
    config = replace(CONFIG, n_layer=2, d_model=1024, d_ff=4096, n_vocab=2000)
    start = write_model(tmp_path / "a", config, random_params(config, 1, "f16"))
    seen = []
    tracemalloc.start()
    path = converted(start, to, tmp_path / "b", "f32", progress=lambda *counts: seen.append(counts))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 60 << 20 < sum(file.stat().st_size for file in path.iterdir())
    assert seen == sorted(seen) and len(seen) > 10
    (last,) = {total for _, total in seen}
    assert last - seen[-1][0] < 32  # what pads the last tensor
    assert sum(file.stat().st_size for file in path.iterdir()) - last < 10_000


def test_gguf_written_is_gguf_of_the_tests(tmp_path):
    """Tensor for tensor in the same order and places as the tests' own writer has them."""
    path = converted(source(tmp_path / "a"), "gguf", tmp_path / "b") / "model.gguf"
    own = ggml_writers.write(tmp_path / "own.gguf", gguf_bytes())
    mine, theirs = (gguf_library.GGUFReader(file).tensors for file in (path, own))
    assert {tensor.name: tensor.data.tobytes() for tensor in mine} == {
        tensor.name: tensor.data.tobytes() for tensor in theirs
    }


def test_the_end_that_a_tokenizer_names_is_carried_along(tmp_path):
    """Where the model's configuration has another."""
    for kind in ("bpe", "sentencepiece"):
        (place := tmp_path / kind).mkdir()
        config = replace(CONFIG, n_vocab=4100, eos_id=9)
        start = write_model(place / "a", config, random_params(config, 1))
        write_tokenizer(start)
        (start / "special_tokens_map.json").write_text(json.dumps({"eos_token": "a"}))
        if kind == "sentencepiece":
            (start / "vocab.json").unlink()
            (start / "merges.txt").unlink()
            (start / "tokenizer.model").write_bytes((refgpt.default_model_path() / "tokenizer.model").read_bytes())
        want = open_model(start)[1]
        assert want.eos_id not in (None, 9) and want.decode([want.eos_id]) == "a"
        for path in (middle := converted(start, "gguf", place / "b"), converted(middle, "hf", place / "c")):
            assert_same_tokenizer(path, want)


def test_tokens_added_to_a_sentencepiece_model_are_carried_along(tmp_path):
    start = tmp_path / "a"
    config = replace(CONFIG, n_vocab=4100)
    write_model(start, config, random_params(config, 1))
    (start / "tokenizer.model").write_bytes((refgpt.default_model_path() / "tokenizer.model").read_bytes())
    entries = {"4096": {"content": "<|user|>", "lstrip": True, "special": True}, "4098": {"content": "two words"}}
    settings = {"eos_token": "two words", "added_tokens_decoder": entries}
    (start / "tokenizer_config.json").write_text(json.dumps(settings))
    want = open_model(start)[1]
    assert want.eos_id == 4098 and want.encode("a <|user|>")[-1] == 4096 and len(want.encode("a <|user|>")) == 2
    middle = converted(start, "gguf", tmp_path / "b")
    for path in (middle, converted(middle, "hf", tmp_path / "c"), converted(start, "hf", tmp_path / "d")):
        assert_same_tokenizer(path, want)
        assert open_model(path)[1].encode("a <|user|>") == want.encode("a <|user|>")
