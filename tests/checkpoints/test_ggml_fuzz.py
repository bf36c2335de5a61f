"""Whatever happens to a ggml or GGUF file, it opens or is refused in the proper way, quickly and in little memory."""

import json
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.files import gguf_file
from refgpt.numbers.leaves import widen
from tests.helpers.fuzzing import FAST, answers_properly, damaged, one_file
from tests.helpers.ggml_writers import ggml_bytes, gguf_bytes, gguf_metadata, gguf_names, gguf_string, gguf_value
from tests.helpers.tiny import random_params, tiny_config

FAST = settings(FAST, max_examples=300)
CONFIG = tiny_config(n_layer=1, n_head=2, d_model=32, d_ff=32, d_rotary=2, n_vocab=11, n_ctx=6)
PARAMS = random_params(CONFIG, seed=9)
TOKENS = [b"<|endoftext|>", *(bytes([65 + i]) for i in range(8)), b"AB", b"\xff"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["A B"],
    "tokenizer.ggml.token_type": np.ones(11, "<i4"),
    "tokenizer.ggml.eos_token_id": 0,
}
GGML = ggml_bytes(CONFIG, PARAMS, "q4_0", tokens=TOKENS)
GGUF = gguf_bytes(gguf_metadata(CONFIG, **TOKENIZER), gguf_names(PARAMS), "q5_1")
WHOLE = {
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "model": {"type": "BPE", "vocab": {chr(65 + i): i for i in range(11)}, "merges": []},
}
WITH_FILE = gguf_bytes(
    gguf_metadata(CONFIG, **TOKENIZER, **{"tokenizer.huggingface.json": json.dumps(WHOLE)}), gguf_names(PARAMS), "q8_0"
)
N_HEADER = {"ggml": GGML.index(b"transformer.wte") + 100, "gguf": GGUF.index(b"output.bias") + 60}


def opens_properly(raw, n_bytes=None):
    """With its tokenizer, and every number in 16 MB; or one error, which is returned."""

    def open_all(path):
        checkpoint, _ = open_model(path)
        for _, leaf in checkpoint.params.items():
            widen(leaf)
        assert len(checkpoint.tensors) == 15

    return answers_properly(one_file(raw, n_bytes), open_all, 16 << 20)


def test_the_whole_files_open():
    assert [opens_properly(raw) for raw in (GGML, GGUF, WITH_FILE)] == [None] * 3


@FAST
@given(damaged(GGML))
def test_damaged_ggml(raw):
    opens_properly(raw)


@FAST
@given(damaged(GGUF) | damaged(WITH_FILE))
def test_damaged_gguf(raw):
    opens_properly(raw)


@FAST
@given(st.sampled_from([("ggml", GGML), ("gguf", GGUF)]), st.data())
def test_numbers_in_the_headers(file, data):
    """A field of four or eight bytes, wherever it stands, becomes a number that makes no sense."""
    kind, raw = file
    at = data.draw(st.integers(4, N_HEADER[kind]))
    number = data.draw(st.sampled_from([0, 1, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]))
    fields = struct.pack("<Q", number)[: data.draw(st.sampled_from([4, 8]))]
    opens_properly(raw[:at] + fields + raw[at + len(fields) :])


@pytest.mark.parametrize("raw", [GGML, GGUF], ids=["ggml", "gguf"])
def test_every_truncation_is_refused(raw):
    end = len(raw) if raw is GGML else len(raw) - 20  # that which pads the last tensor, output.bias, may be missing
    for n_bytes in [*range(400), *range(400, end, 97), end - 1]:
        assert opens_properly(raw[:n_bytes]) is not None


HEADER = b"GGUF" + struct.pack("<I", 3)
KEY = gguf_string("k")
ARRAY = struct.pack("<I", 9)


def one_key(value):
    return HEADER + struct.pack("<QQ", 0, 1) + KEY + value


def one_tensor(n_dims=2, dims=(32, 11), kind=0, offset=0, name=b"token_embd.weight"):
    entry = gguf_string(name) + struct.pack("<I", n_dims) + struct.pack(f"<{len(dims)}Q", *dims)
    return HEADER + struct.pack("<QQ", 1, 0) + entry + struct.pack("<IQ", kind, offset)


def nested(depth):
    return ARRAY + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)


def changed(**keys):
    return gguf_bytes(
        gguf_metadata(CONFIG, **{key.replace("__", "."): value for key, value in keys.items()}), gguf_names(PARAMS)
    )


def moved(name, change):
    """A whole file with one tensor's offset changed."""
    raw = bytearray(GGUF)
    at = raw.index(name.encode()) + len(name) + 4 + 8 * 2 + 4
    struct.pack_into("<Q", raw, at, struct.unpack_from("<Q", raw, at)[0] + change)
    return bytes(raw)


def twice(name, other):
    """A whole file in which one tensor has another's name, as long as its own."""
    assert len(name) == len(other)
    return GGUF.replace(name.encode(), other.encode())


HUGE = 2**60
HOSTILE_GGUF = {  # what the error must say
    "2^60 tensors": (HEADER + struct.pack("<QQ", HUGE, 0), "absurdly many tensors"),
    "2^60 keys": (HEADER + struct.pack("<QQ", 0, HUGE), "absurdly many keys"),
    "a string of 2^60 bytes": (one_key(struct.pack("<IQ", 8, HUGE)), "far too large"),
    "a key of 2^60 bytes": (HEADER + struct.pack("<QQ", 0, 1) + struct.pack("<Q", HUGE), "length of a key"),
    "an empty key": (HEADER + struct.pack("<QQ", 0, 1) + gguf_string("") + gguf_value(1), "length of a key"),
    "2^60 numbers": (one_key(ARRAY + struct.pack("<IQ", 0, HUGE)), "far too large"),
    "2^60 strings": (one_key(ARRAY + struct.pack("<IQ", 8, HUGE)), "absurdly many strings"),
    "2^60 arrays": (one_key(ARRAY + struct.pack("<IQ", 9, HUGE)), "neither a number nor a string"),
    "nested arrays": (one_key(nested(10000)), "neither a number nor a string"),
    "an unknown type": (one_key(struct.pack("<I", 13)), "unknown type, 13"),
    "a key twice": (HEADER + struct.pack("<QQ", 0, 2) + 2 * (KEY + gguf_value(1)), "key is there twice"),
    "2^31 dimensions": (one_tensor(n_dims=2**31), "number of dimensions"),
    "no dimensions": (one_tensor(n_dims=0, dims=()), "number of dimensions"),
    "2^62 rows": (one_tensor(dims=(32, 2**62)), "dimensions make no sense"),
    "a product beyond 64 bits": (one_tensor(dims=(2**40, 2**40)), "dimensions make no sense"),
    "no rows": (one_tensor(dims=(32, 0)), "dimensions make no sense"),
    "an unknown format": (one_tensor(kind=200), "type 200"),
    "rows that are no blocks": (one_tensor(dims=(31, 11), kind=2), "multiples of 32"),
    "an offset of 2^60": (one_tensor(offset=HUGE), "does not follow"),
    "an odd offset": (one_tensor(offset=3), "does not follow"),
    "an overlap": (moved("blk.0.attn_q.weight", -32), "attn_q.*does not follow"),
    "a gap": (moved("blk.0.attn_q.weight", 32), "attn_q.*does not follow"),
    "a tensor twice": (twice("blk.0.attn_q.weight", "blk.0.attn_k.weight"), "attn_k.*twice"),
    "a tensor beyond the end": (GGUF[:-100], "beyond the end"),
    "a name of 2^60 bytes": (HEADER + struct.pack("<QQ", 1, 0) + struct.pack("<Q", HUGE), "length of a tensor's name"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version of GGUF.*got 1"),
    "version 9": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version of GGUF.*got 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "3, big-endian"),
    "nothing in it": (HEADER + struct.pack("<QQ", 0, 0), "not supported"),
    "alignment 0": (changed(general__alignment=0), "alignment"),
    "alignment 3": (changed(general__alignment=3), "alignment"),
    "alignment 2^30": (changed(general__alignment=2**30), "alignment"),
    "alignment in words": (changed(general__alignment="32"), "alignment"),
    "another alignment": (changed(general__alignment=4096), "does not follow|beyond the end"),
    "data after the end": (GGUF + bytes(33), "data after the last tensor"),
}
#: The weights are whole, but not the tokenizer.
BROKEN_TOKENIZERS = {
    "tokens that are numbers": (changed(**TOKENIZER | {"tokenizer.ggml.tokens": [1, 2]}), "tokens is no list"),
    "more tokens than rows": (changed(**TOKENIZER | {"tokenizer.ggml.tokens": TOKENS * 2}), "more tokens than rows"),
    "types of other tokens": (
        changed(**TOKENIZER | {"tokenizer.ggml.token_type": np.ones(3, "<i4")}),
        "token_type does not fit",
    ),
    "merges that are no text": (changed(**TOKENIZER | {"tokenizer.ggml.merges": [b"\xff a"]}), "merges is not UTF-8"),
    "a tokenizer that is a number": (changed(tokenizer__huggingface__json=3), "tokenizer inside is no file"),
}

MAGIC = struct.pack("<i", 0x67676D6C)


def ggml_header(n_vocab=11, n_layer=1, count=None, token=b""):
    numbers = struct.pack("<7i", n_vocab, 6, 32, 2, n_layer, 2, 0)
    return MAGIC + numbers + struct.pack("<i", n_vocab if count is None else count) + token


EMPTY_TOKENS = bytes(4) * 11
HOSTILE_GGML = {
    "2^31 tokens": (ggml_header(n_vocab=2**31 - 1), "n_vocab makes no sense"),
    "-1 tokens": (ggml_header(n_vocab=-1), "n_vocab makes no sense"),
    "2^31 layers": (ggml_header(n_layer=2**31 - 1), "n_layer makes no sense"),
    "another count": (ggml_header(count=12), "vocabulary has another size"),
    "a token of 2^31 bytes": (ggml_header(token=struct.pack("<i", 2**31 - 1)), "ends within its vocabulary"),
    "a token of -1 bytes": (ggml_header(token=struct.pack("<i", -1)), "ends within its vocabulary"),
    "no tensors": (ggml_header(token=EMPTY_TOKENS), "no tensor transformer.h.0.mlp.fc_in.bias"),
    "2^31 dimensions": (ggml_header(token=EMPTY_TOKENS + struct.pack("<3i", 2**31 - 1, 1, 0)), "header makes no sense"),
    "a name of 2^31 bytes": (
        ggml_header(token=EMPTY_TOKENS + struct.pack("<5i", 2, 2**31 - 1, 0, 1, 1)),
        "header makes no sense",
    ),
    "dimensions of 2^31": (
        ggml_header(token=EMPTY_TOKENS + struct.pack("<5i", 2, 1, 0, 2**31 - 1, 2**31 - 1) + b"x"),
        "ends within",
    ),
    "dimensions of -1": (
        ggml_header(token=EMPTY_TOKENS + struct.pack("<5i", 2, 1, 0, -1, -1) + b"x"),
        "dimensions make no sense",
    ),
    "data after the end": (GGML + bytes(1), "more in the file"),
}


@pytest.mark.parametrize("case", [*HOSTILE_GGUF, *HOSTILE_GGML])
def test_a_hostile_file_is_refused(case):
    for raw, why in (table[case] for table in (HOSTILE_GGUF, HOSTILE_GGML) if case in table):
        assert re.search(why, str(opens_properly(raw)))


@pytest.mark.parametrize("case", BROKEN_TOKENIZERS)
def test_a_tokenizer_that_is_broken_leaves_the_weights(tmp_path, case, caplog):
    raw, why = BROKEN_TOKENIZERS[case]
    assert opens_properly(raw) is None
    (tmp_path / "m.gguf").write_bytes(raw)
    caplog.clear()
    checkpoint, tokenizer = open_model(tmp_path / "m.gguf")
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert tokenizer is None and re.search(why, checkpoint.tokenizer_fault) and re.search(why, record.getMessage())
    caplog.clear()
    checkpoint, tokenizer = open_model(tmp_path / "m.gguf", tokenizer=False)
    assert tokenizer is None and not checkpoint.tokenizer_fault
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_tokens_that_a_large_file_could_hold():
    """One token after another of a megabyte, in a sparse file: read to some megabytes and no further."""
    tokens = (struct.pack("<i", 1 << 20) + bytes(1 << 20)) * 10
    assert "vocabulary is far too large" in str(opens_properly(ggml_header(n_vocab=500, token=tokens), 1 << 30))


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IIQ", 9, 8, 1 << 24),
        struct.pack("<IIQ", 9, 0, 1 << 30),
        struct.pack("<IIQ", 9, 10, 1 << 27),
        struct.pack("<IQ", 8, 1 << 30),
    ],
)
def test_counts_that_a_large_file_could_hold(value):
    """The file is long enough for what it claims (it is sparse); still it is far too much."""
    assert opens_properly(one_key(value), 2 << 30) is not None


def test_a_long_file_of_tiny_tokens():
    assert opens_properly(ggml_header(n_vocab=1 << 26), 1 << 29) is not None
    assert opens_properly(HEADER + struct.pack("<QQ", 0, 1 << 20), 1 << 29) is not None
    assert opens_properly(HEADER + struct.pack("<QQ", 1 << 20, 0), 1 << 29) is not None


def test_the_largest_vocabulary_that_is_read_takes_little_work():
    """Tokens and merges as many as are allowed: slower than any model's, and still quick."""
    strings = [b"%d" % i for i in range(gguf_file.MOST_STRINGS // 2)]
    raw = gguf_bytes({"a": strings, "b": strings}, {})
    assert "not supported" in str(answers_properly(one_file(raw), open_checkpoint, most_bytes=None))
