"""Damaged, misplaced and foreign tokenizer files: one error each, that names the file."""

import json
import os
import random
import signal
import threading
import tracemalloc

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from refgpt._common.errors import RefgptError, TokenizerError
from refgpt._common.small_files import parse_json
from refgpt.tokenizers import files, find_tokenizer, load_tokenizer
from tests.helpers.small_tokenizers import SENTENCES, write_json, write_pair
from tests.helpers.work import little_work


def refused(path, words):
    """Loading fails with little work and these words, naming a file of ``path``."""
    with little_work(), pytest.raises(TokenizerError, match=words) as caught:
        load_tokenizer(path)
    directory = path if path.is_dir() else path.parent
    assert str(directory) in str(caught.value)
    return caught.value


def test_nothing_there(tmp_path):
    assert find_tokenizer(tmp_path) is None
    assert find_tokenizer(tmp_path / "none such") is None
    refused(tmp_path, "no tokenizer in this directory; wanted tokenizer.json")
    refused(tmp_path / "none such", "there is no such file")
    for name in ("none such.json", "vocab.json", "none such.model"):
        refused(tmp_path / name, "there is no such file")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 9)
    refused(tmp_path / "weights.bin", "not a tokenizer's file; wanted tokenizer.json")
    assert find_tokenizer(tmp_path) is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "encoder.json", "vocab.bpe"])
def test_half_a_pair_names_the_other_half(name, trained, tmp_path):
    names = ("vocab.json", "merges.txt") if name in ("vocab.json", "merges.txt") else ("encoder.json", "vocab.bpe")
    other = next(n for n in names if n != name)
    write_pair(tmp_path, trained, names)
    (tmp_path / other).unlink()
    assert str(tmp_path / other) in str(refused(tmp_path, "there is no such file"))


def test_precedence(description, sentencepiece_models, tmp_path):
    (tmp_path / "vocab.json").write_text("{}")  # half a pair gives way to a whole tokenizer
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models["keeps all"])
    assert find_tokenizer(tmp_path).n_vocab == 340
    for n_vocab, names in ((321, ("encoder.json", "vocab.bpe")), (322, ("vocab.json", "merges.txt"))):
        description["model"]["vocab"][f"<{n_vocab}>"] = n_vocab - 1
        write_pair(tmp_path, description, names)
        assert find_tokenizer(tmp_path).n_vocab == n_vocab
    description["model"]["vocab"]["<323>"] = 322
    write_json(tmp_path, "tokenizer.json", description)
    assert find_tokenizer(tmp_path).n_vocab == 323


TOKENIZER_FILES = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"]
FILES = [*TOKENIZER_FILES, "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"]


@pytest.fixture
def directory(trained, sentencepiece_models, tmp_path):
    """A function that makes a directory in which the named file is read."""

    def make(name):
        if name == "tokenizer.model":
            (tmp_path / name).write_bytes(sentencepiece_models["keeps all"])
        elif name in ("vocab.json", "merges.txt"):
            write_pair(tmp_path, trained)
        else:
            write_json(tmp_path, "tokenizer.json", trained)
        return tmp_path

    return make


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_files(name, directory, monkeypatch):
    path = directory(name) / name
    path.write_bytes(b"")
    assert str(path) in str(refused(path.parent, "the file is empty"))
    monkeypatch.setattr(files, "MOST_BYTES", 100_000)
    monkeypatch.setattr(files, "MOST_BYTES_OF_SETTINGS", 100_000)
    path.write_bytes(b" " * 100_001)
    assert str(path) in str(refused(path.parent, "too large for its purpose; got 100001 bytes; wanted at most 100000"))


ABSURDLY_MANY = {
    "lists": (b"[" + b"[]," * 600_000 + b"0]", 1_200_003),
    "numbers": (b"[" + b"1.5," * 1_100_000 + b"0]", 1_100_003),
    "keys": (b"{" + b",".join(b'"%x":0' % i for i in range(600_000)) + b"}", 1_200_002),
}


@pytest.mark.parametrize("kind", ABSURDLY_MANY)
def test_absurdly_many_values_are_refused_unparsed(tmp_path, kind):
    content, n = ABSURDLY_MANY[kind]
    (tmp_path / "tokenizer.json").write_bytes(b'{"model":' + content + b"}")
    tracemalloc.start()
    refused(tmp_path, f"absurdly many values; got up to {n}; ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("n", [50_257, 200_000])
def test_large_vocabularies_whose_merges_are_lists_are_parsed(n):
    """GPT-2's size, and the largest that is thought of; some tokens are the marks that are counted."""
    vocab = {f"{',:[{'[i % 4] if i % 50 == 0 else 't'}{i}": i for i in range(n)}
    found = {"model": {"vocab": vocab, "merges": [[f"t{i}", "u"] for i in range(n)]}}
    assert parse_json(json.dumps(found).encode(), "here", TokenizerError) == found


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"])
def test_settings_are_smaller_than_vocabularies(name, directory):
    (directory(name) / name).write_bytes(b" " * (2 << 20) + b"{}")
    refused(directory(name), "too large for its purpose")


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_directory_in_the_place_of_a_file(name, directory):
    path = directory(name) / name
    path.unlink()
    path.mkdir()
    assert str(path) in str(refused(path.parent, "is not a file"))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    refused(tmp_path, "is not a file")


@pytest.mark.parametrize("name", [name for name in FILES if name != "tokenizer.model"])
def test_files_that_are_not_utf8(name, directory):
    path = directory(name) / name
    path.write_bytes(b'{"a\xff": 1}')
    assert str(path) in str(refused(path.parent, "is not UTF-8"))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", r"not an object; got \[1, 2\]; wanted one JSON object"),
        ("null", "not an object; got None"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1} 2', "not JSON: Extra data at character 9"),
        ('{"a": NaN}', "a number is not finite; got NaN"),
        ('{"a": 1, "b": 2, "a": 1}', "a key is given twice; got 'a'"),
        ('{"a": ' + "[" * 200_000, "the nesting is absurdly deep"),
        ('{"a": ' + "9" * 10_000 + "}", "a number is absurdly long"),
    ],
    ids=["list", "null", "cut", "more", "NaN", "twice", "deep", "huge"],
)
def test_files_that_are_no_json_object(name, content, words, directory):
    path = directory(name) / name
    path.write_text(content)
    refused(path.parent, words)


def set_in(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(table):
        for key in keys:
            table = table[key]
        table[last] = value

    return change


def added(**fields):
    whole = {
        "id": 320,
        "content": "<new>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return lambda table: table["added_tokens"].append({k: v for k, v in (whole | fields).items() if v is not ...})


VOCAB = ("model", "vocab")
SPOILT = {
    "no model": (set_in("model", None), "model is of the wrong JSON type; got NoneType; wanted dict"),
    "another model": (
        set_in("model", "type", "WordPiece"),
        "not a byte-level BPE; got 'WordPiece' with the pre-tokenizer",
    ),
    "a model of an odd type": (set_in("model", "type", ["BPE"]), "not a byte-level BPE"),
    "no pre-tokenizer": (set_in("pre_tokenizer", None), "not a byte-level BPE; got 'BPE' with the pre-tokenizer"),
    "another pre-tokenizer": (set_in("pre_tokenizer", {"type": "Whitespace"}), "not a byte-level BPE"),
    "an odd sequence": (set_in("pre_tokenizer", {"type": "Sequence", "pretokenizers": 3}), "not a byte-level BPE"),
    "ends of words": (set_in("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix has no place"),
    "inner parts": (set_in("model", "continuing_subword_prefix", "##"), "continuing_subword_prefix has no place"),
    "an odd normalizer": (set_in("normalizer", {"type": "Magic"}), "this normalizer is not read; got 'Magic'"),
    "an odd byte-level step": (set_in("pre_tokenizer", {"type": "ByteLevel", "use_regex": 3}), "library refuses"),
    "no vocabulary": (set_in(*VOCAB, None), "vocab is of the wrong JSON type"),
    "an empty vocabulary": (set_in(*VOCAB, {}), "a merge is not in the vocabulary"),
    "an id as text": (set_in(*VOCAB, "new", "320"), "an id in vocab makes no sense; got '320' for 'new'"),
    "an id of True": (set_in(*VOCAB, "new", True), "makes no sense; got True for 'new'"),
    "an id of 1.5": (set_in(*VOCAB, "new", 1.5), "makes no sense; got 1.5"),
    "a negative id": (set_in(*VOCAB, "new", -1), "makes no sense; got -1 for 'new'; wanted a whole number from 0 to"),
    "an absurd id": (set_in(*VOCAB, "new", 1 << 24), "makes no sense; got 16777216"),
    "a shared id": (set_in(*VOCAB, "new", 1), "two tokens of vocab share an id; got 1 for '!' and 'new'"),
    "a lone surrogate": (set_in(*VOCAB, "\ud800", 320), "library refuses this tokenizer"),
    "no merges": (set_in("model", "merges", None), "merges is of the wrong JSON type"),
    "a merge of three": (set_in("model", "merges", 0, ["a", "b", "c"]), "a merge is not two tokens"),
    "a merge of one": (set_in("model", "merges", 0, "ab"), "a merge is not two tokens; got 'ab'"),
    "a merge of numbers": (set_in("model", "merges", 0, [1, 2]), "a merge is not two tokens"),
    "a merge that is a number": (set_in("model", "merges", 0, 7), "a merge is not two tokens; got 7"),
    "a merge with a space": (set_in("model", "merges", 0, ["a b", "c"]), "a merge is not two tokens"),
    "an unknown left part": (set_in("model", "merges", 0, ["zzz", "e"]), "a merge is not in the vocabulary; got"),
    "an unknown right part": (set_in("model", "merges", 0, ["e", "zzz"]), "a merge is not in the vocabulary; got"),
    "an unknown whole": (set_in("model", "merges", 0, ["q", "q"]), "a merge is not in the vocabulary; got .'q', 'q'."),
    "odd added tokens": (set_in("added_tokens", {"a": 1}), "added_tokens is of the wrong JSON type"),
    "an odd added token": (set_in("added_tokens", [7]), "an added token is of the wrong JSON type"),
    "an added token without text": (added(content=...), "an added token's content is of the wrong JSON type"),
    "an added token without id": (added(id=...), "an id in added_tokens makes no sense; got None"),
    "an added token with a list as id": (added(id=[1]), "an id in added_tokens makes no sense"),
    "an added token with another id": (added(content="!"), "an added token has two ids; got 320 and 1 for '!'"),
    "an added token on a taken id": (added(id=5), "share an id; got 5 for"),
    "an added token without its flags": (added(lstrip=...), "library refuses"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_tokenizer_json(case, description, tmp_path):
    change, words = SPOILT[case]
    change(description)
    refused(write_json(tmp_path, "tokenizer.json", description), words)


def test_an_empty_tokenizer_can_encode_nothing(description, tmp_path):
    description["model"] |= {"vocab": {}, "merges": []}
    description["added_tokens"] = []
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    assert (tokenizer.n_vocab, tokenizer.eos_id, tokenizer.encode("")) == (0, None, [])
    with pytest.raises(TokenizerError, match="no token spells this character"):
        tokenizer.encode("a")
    with pytest.raises(TokenizerError, match="no such id"):
        tokenizer.decode([0])


OTHER_MODELS = [
    models.WordLevel({"a": 0}, "a"),
    models.WordPiece({"a": 0}, unk_token="a"),
    models.Unigram([("a", 0.0)]),
]


@pytest.mark.parametrize("model", OTHER_MODELS, ids=lambda model: type(model).__name__)
def test_other_kinds_of_tokenizer(model, sentencepiece_models, tmp_path):
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    refused(tmp_path, f"not a byte-level BPE; got '{type(model).__name__}'")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models["keeps all"])  # beside which nothing else is needed
    assert find_tokenizer(tmp_path).n_vocab == 340
    refused(tmp_path / "tokenizer.json", "not a byte-level BPE")
    (tmp_path / "tokenizer.json").write_text("{")
    refused(tmp_path, "tokenizer.json: the text is not JSON")


@pytest.mark.parametrize("line", ["a", "a b c", " a", "a  b", "zzz e", "#version", "Ä € x"])
def test_spoilt_merges(line, trained, tmp_path):
    with open(write_pair(tmp_path, trained) / "merges.txt", "a", encoding="utf-8") as merges:
        merges.write(line + "\n")
    refused(tmp_path, "a merge is not (two tokens|in the vocabulary); got " + repr(line))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"!": 320}, "an added token has two ids; got 320 and 1 for '!'"),
        ({"<new>": 1}, "share an id; got 1 for '!' and '<new>'"),
        ({"<new>": -1}, "makes no sense; got -1"),
        ({"<a>": 320, "<b>": 320}, "share an id; got 320"),
    ],
    ids=["two ids", "taken", "negative", "shared"],
)
@pytest.mark.parametrize(
    "write", [write_pair, lambda path, table: write_json(path, "tokenizer.json", table)], ids=["2", "1"]
)
def test_spoilt_added_tokens(table, words, write, trained, tmp_path):
    write(tmp_path, trained)
    refused(write_json(tmp_path, "added_tokens.json", table), words)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize("token", [7, [], {}, {"content": 7}, True], ids=repr)
def test_spoilt_eos(name, token, directory):
    refused(write_json(directory(name), name, {"eos_token": token}), "eos_token is of the wrong JSON type")


@pytest.mark.parametrize(
    "content", [b"toad" * 100, b"\0" * 100, b"\x0a\xff\xff\xff\xff\x7f"], ids=["text", "zeros", "length"]
)
def test_garbage_sentencepiece(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    refused(tmp_path, "the sentencepiece library refuses this model")


def test_a_panic_or_any_other_fault_of_a_library_is_one_error(directory, monkeypatch):
    class Panic(BaseException):
        """As a panic in Rust code arrives in Python."""

    def panic(*_, **__):
        raise Panic("index out of range")

    class Library:
        from_str = panic

    path = directory("tokenizer.json")
    monkeypatch.setattr(tokenizers, "Tokenizer", Library)
    refused(path, "the tokenizers library refuses this tokenizer; got index out of range")
    path = directory("tokenizer.model") / "tokenizer.model"
    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", panic)
    refused(path, "the sentencepiece library refuses this model; got index out of range")


class Late(Exception):
    """What a program of the user's raises."""


@pytest.mark.parametrize(
    "error", [TimeoutError("late"), Late("late"), KeyboardInterrupt(), RuntimeError("late")], ids=repr
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_what_a_signal_handler_raises_comes_out_as_it_is(error, name, directory):
    """While the library encodes: the signal is sent before, and handled when Python is next at work."""
    tokenizer = load_tokenizer(directory(name))

    def handler(*_):
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(type(error)) as caught:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            while True:
                tokenizer.encode("the old toad " * 1000)
        assert caught.value is error
    finally:
        signal.signal(signal.SIGUSR1, before)


def spoil(data: bytes, seed: int) -> bytes:
    """A few bytes changed, taken out or doubled, or the end cut off."""
    rng = random.Random(seed)
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, n = rng.randrange(len(spoilt)), rng.randrange(1, 30)
        patch = [b"", bytes([rng.randrange(256)]), spoilt[at : at + n] * 2, b'"', b"-1", b"9" * 12, b"[", b"}"]
        spoilt[at : at + n] = rng.choice(patch)
    return bytes(spoilt[: rng.randrange(len(spoilt))] if rng.random() < 0.1 else spoilt)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_fuzzed_files_load_or_are_refused(name, seed, directory):
    path = directory(name) / name
    path.write_bytes(spoil(path.read_bytes(), seed))
    try:
        tokenizer = load_tokenizer(path.parent)
        ids = [token_id for text in [*SENTENCES, "<|endoftext|>\n\n\0🙂"] for token_id in tokenizer.encode(text)]
        assert isinstance(tokenizer.decode(ids), str)
    except RefgptError as error:
        assert str(error)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), value=json_values)
def test_any_json_in_any_place_loads_or_is_refused(data, value, trained, tmp_path):
    spoilt = json.loads(json.dumps(trained))
    place = spoilt
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", spoilt))
        assert isinstance(tokenizer.decode(tokenizer.encode(SENTENCES[0])), str)
    except RefgptError as error:
        assert str(error)
