"""What a tokenizer.json may ask of the tokenizers library: refused by name before the library sees it."""

import json
from pathlib import Path

import pytest
import tokenizers

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers import load_tokenizer
from refgpt.tokenizers.byte_level_bpe import ByteLevelBPE
from refgpt.tokenizers.components import fault_of_regex
from refgpt.tokenizers.sentencepiece_model import SentencePieceTokenizer
from tests.helpers.small_tokenizers import SENTENCES, write_json


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def nested(step, depth):
    return step if depth == 0 else sequence(nested(step, depth - 1))


Z16, LINES = replace({"String": "z"}, "z" * 16), {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
NORMALIZERS = {
    "16 times 16": (sequence(Z16, Z16), "many times as long; got 256 times"),
    "16 times 16, nested": (sequence(Z16, nested(Z16, 5)), "many times as long; got 256 times"),
    "long for one letter": (replace({"String": "z"}, "y" * 20), "many times as long; got 20 times"),
    "two bytes count as two": (replace({"String": "z"}, "é" * 9), "many times as long; got 18 times"),
    "between all letters": (replace({"Regex": ""}, "y" * 16), "many times as long; got 17 times"),
    "a long content": (replace({"String": "z" * 200}, "z" * 257), "content of Replace cannot be used"),
    "an empty pattern": (replace({"String": ""}, "z"), "the pattern of Replace cannot be used"),
    "a pattern of two kinds": (replace({"String": "z", "Regex": "z"}, "z"), "pattern of Replace makes no sense"),
    "a pattern that is a text": (replace("z", "z"), "pattern of Replace makes no sense"),
    "a pattern without end": (replace({"Regex": "(z+)+y"}, ""), "may take for ever: a group is repeated"),
    "a long text before": ({"type": "Prepend", "prepend": "z" * 257}, "prepend of Prepend cannot be used"),
    "a charsmap": ({"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "not read; got 'Precompiled'"),
    "a charsmap, nested": (nested({"type": "Precompiled"}, 4), "not read; got 'Precompiled'"),
    "letters for bytes, again": (sequence(*[{"type": "ByteLevel"}] * 9), "not read; got 'ByteLevel'"),
    "many": (sequence(*[{"type": "NFC"}] * 17), "too many normalizers; wanted at most 16"),
    "deep": (nested({"type": "NFC"}, 300), "too many normalizers"),
    "a sequence of nothing": ({"type": "Sequence", "normalizers": {}}, "a sequence of normalizers makes no sense"),
    "a text": ("NFC", "a normalizer makes no sense; got 'NFC'"),
    "no type": ({"content": "z"}, "a normalizer makes no sense"),
}
PRE_TOKENIZERS = {
    "byte-level twice": ([LINES, LINES], "ByteLevel is there twice"),
    "metaspace twice": ([{"type": "Metaspace", "replacement": "_"}] * 2 + [LINES], "Metaspace is there twice"),
    "a pattern without end": ([SPLIT | {"pattern": {"Regex": "(a|aa)*b"}}, LINES], "for ever: a group is repeated"),
    "an empty pattern": ([SPLIT | {"pattern": {"String": ""}}, LINES], "the pattern of Split cannot be used"),
    "many": ([*[{"type": "Digits", "individual_digits": True}] * 16, LINES], "too many pre-tokenizers"),
    "of another family": ([{"type": "BertPreTokenizer"}, LINES], "not read; got 'BertPreTokenizer'"),
    "a new one": ([{"type": "FixedLength", "length": 1}, LINES], "not read; got 'FixedLength'"),
}


@pytest.fixture
def no_library(monkeypatch):
    """Whoever hands anything to the library fails."""

    class Library:
        def from_str(*_):
            raise AssertionError("the library has seen it")

    monkeypatch.setattr(tokenizers, "Tokenizer", Library)


@pytest.mark.parametrize("case", NORMALIZERS)
def test_normalizers_that_are_refused(case, description, tmp_path, no_library):
    description["normalizer"], words = NORMALIZERS[case]
    with pytest.raises(TokenizerError, match=words) as caught:
        load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@pytest.mark.parametrize("case", PRE_TOKENIZERS)
def test_pre_tokenizers_that_are_refused(case, description, tmp_path, no_library):
    steps, words = PRE_TOKENIZERS[case]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    with pytest.raises(TokenizerError, match=words):
        load_tokenizer(write_json(tmp_path, "tokenizer.json", description))


def test_they_are_refused_inside_a_file_of_weights_too(description):
    description["normalizer"] = sequence(Z16, Z16)
    with pytest.raises(TokenizerError, match="many times as long"):
        ByteLevelBPE(description, Path("model.gguf"), "tokenizer.json in model.gguf")


def test_an_added_token_is_short(description, tmp_path, no_library):
    description["added_tokens"][0]["content"] = "z" * 1025
    with pytest.raises(TokenizerError, match="an added token is absurdly long"):
        load_tokenizer(write_json(tmp_path, "tokenizer.json", description))


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFC"},
        sequence(*({"type": name} for name in ("NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Nmt"))),
        sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")),
        replace({"Regex": " {2,}"}, " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
)
def test_what_relatives_of_gptj_use_is_read(normalizer, description, tmp_path):
    description["normalizer"] = normalizer
    steps = [SPLIT | {"pattern": {"Regex": LLAMA3}}, {"type": "Digits", "individual_digits": True}, LINES]
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    whole = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    for text in ["the mill 1999  and the well", "The mill"]:
        assert tokenizer.encode(text) == whole.encode(text).ids


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@pytest.mark.parametrize(
    "pattern", [GPT2, LLAMA3, O200K, BLOOM, r"[0-9][0-9][0-9]", r"(?<=a)b+?|a++", r"\[x\](y)?", ""]
)
def test_published_patterns_are_harmless(pattern):
    assert fault_of_regex(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a+)+$", "a group is repeated"),
        ("(?:a|aa){2,}b", "a group is repeated"),
        ("((a))*", "a group is repeated"),
        (r"[)](a[(]+)*", "a group is repeated"),
        ("(a+)?*", "a repetition is repeated"),
        ("a{1,9}{1,9}", "a repetition is repeated"),
        ("a{2}+", "a repetition is repeated"),
        ("a+?+", "a repetition is repeated"),
        ("a*a*a*b", "more than 2 repetitions"),
        ("b|(?:a*|c)(?:a*|c)(?:a*|c)", "more than 2 repetitions"),
        ("a?" * 5, "more than 4 optional parts"),
        ("a{257}", "more than 256"),
        (r"(a)\1", "refers to another part"),
        (r"(?<x>a\g<x>?)", "uncommon kind"),
        (r"(a\g<0>?)", "refers to another part"),
        ("(?x)a", "uncommon kind"),
        ("(?~a)", "uncommon kind"),
        ("(?#a)", "uncommon kind"),
        ("[a", "does not end"),
        ("a" * 4097, "4097 letters"),
    ],
)
def test_patterns_that_may_take_for_ever(pattern, why):
    assert why in fault_of_regex(pattern)


def message(number, content):
    """A field of a protocol buffer that has a length."""
    tag, n = number << 3 | 2, len(content)
    digits = lambda value: bytes([value]) if value < 128 else bytes([value & 127 | 128]) + digits(value >> 7)  # noqa: E731
    return digits(tag) + digits(n) + content


@pytest.mark.parametrize("number", [3, 5])
@pytest.mark.parametrize("group", [b"", b"\x0b\x0c"])
def test_sentencepiece_models_that_write_long_texts(number, group, sentencepiece_models, tmp_path):
    """Of a normalizer or a denormalizer, behind a group that old readers skip or not."""
    table = (4).to_bytes(4, "little") + b"trie" + b"ok\0" + b"z" * 257 + b"\0"
    model = sentencepiece_models["keeps all"] + group + message(number, message(2, table))
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TokenizerError, match=r"library refuses this model; got (it would put 257 bytes|a field)"):
        load_tokenizer(tmp_path)


def test_the_mark_of_the_unknown_is_short(sentencepiece_models):
    for n, refused in ((256, False), (257, True)):
        model = sentencepiece_models["keeps all"] + message(2, message(44, b"?" * n))
        if refused:
            with pytest.raises(TokenizerError, match="it would put 257 bytes into a text"):
                SentencePieceTokenizer(model, Path("x"), "x")
        else:
            assert SentencePieceTokenizer(model, Path("x"), "x").decode([0]).strip("?") == ""


def test_real_normalizers_are_read(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=100,
        model_type="bpe",
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("THE MILL")) == "the mill"
