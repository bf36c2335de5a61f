"""What the files beside a tokenizer say, and which of them counts: ids are those that transformers 5.24 gives."""

import shutil

import pytest

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers import load_tokenizer
from tests.helpers.small_tokenizers import write_json, write_pair

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}


def decoder(**tokens):
    """An ``added_tokens_decoder`` from 320 on: names to flags that differ."""
    entries = ({"content": f"<{name}>", **FLAGS, **flags} for name, flags in tokens.items())
    return {"added_tokens_decoder": {str(320 + n): entry for n, entry in enumerate(entries)}}


def one_file(directory, description):
    return write_json(directory, "tokenizer.json", description)


@pytest.fixture(params=[one_file, write_pair], ids=["tokenizer.json", "vocab.json"])
def load(request, description, tmp_path):
    """A function that loads the tokenizer with these files beside it."""

    def load(**files):
        request.param(tmp_path, description)
        for name, content in files.items():
            write_json(tmp_path, f"{name}.json", content)
        return load_tokenizer(tmp_path)

    return load


@pytest.fixture
def spell(byte_level):
    """A function from parts, texts and ids, to all their ids."""
    return lambda *parts: [i for part in parts for i in ([part] if isinstance(part, int) else byte_level.encode(part))]


def test_added_tokens_decoder_gives_ids_and_flags(load, spell):
    tokenizer = load(
        tokenizer_config=GPT2 | decoder(a={}, l={"lstrip": True}, r={"rstrip": True}, w={"single_word": True})
    )
    assert tokenizer.encode("the<a> mill") == spell("the", 320, " mill")
    assert tokenizer.encode("the \n<l> mill <a>") == spell("the", 321, " mill ", 320)
    assert tokenizer.encode("the <r> mill") == spell("the ", 322, "mill")
    assert tokenizer.encode("the<w>x <w>") == spell("the<w>x ", 323)
    assert tokenizer.decode([320, 321]) == "<a><l>" and tokenizer.n_vocab == 324


def test_its_flags_go_before_those_of_tokenizer_json(description, tmp_path, spell):
    description["added_tokens"].append({"id": 320, "content": "<a>", **FLAGS, "rstrip": True})
    one_file(tmp_path, description)
    assert load_tokenizer(tmp_path).encode("the <a> mill") == spell("the ", 320, "mill")
    write_json(tmp_path, "tokenizer_config.json", GPT2 | decoder(a={"lstrip": True}))
    assert load_tokenizer(tmp_path).encode("the <a> mill") == spell("the", 320, " mill")
    write_json(tmp_path, "tokenizer_config.json", GPT2 | {"added_tokens_decoder": {"320": {"content": "<a>"}}})
    assert load_tokenizer(tmp_path).encode("the <a> mill") == spell("the ", 320, " mill")


def test_beside_it_added_tokens_and_special_tokens_map_do_not_count(load, spell):
    others = {
        "added_tokens": {"<b>": 321},
        "special_tokens_map": {"eos_token": "!", "additional_special_tokens": ["<c>"]},
    }
    tokenizer = load(tokenizer_config=GPT2 | decoder(a={}), **others)
    assert tokenizer.encode("<a><b><c>") == spell(320, "<b><c>") and tokenizer.eos_id == 0
    tokenizer = load(tokenizer_config=GPT2, **others)
    assert tokenizer.encode("<b><c>") == [321, 322] and tokenizer.eos_id == spell("!")[0]


@pytest.mark.parametrize("eos", ["<a>", {"content": "<a>", **FLAGS, "__type": "AddedToken"}])
def test_the_end_may_be_an_added_token(eos, load):
    assert load(tokenizer_config=GPT2 | decoder(a={}) | {"eos_token": eos}).eos_id == 320


def test_the_end_of_special_tokens_map_goes_before_that_of_tokenizer_config(load):
    files = {"tokenizer_config": {"eos_token": "<b>"}, "added_tokens": {"<a>": 320, "<b>": 321}}
    assert load(**files).eos_id == 321
    assert load(**files, special_tokens_map={"eos_token": "<a>"}).eos_id == 320


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_further_special_tokens(key, name, load, spell):
    """Those that are tokens are looked for in a text; the others get the next ids."""
    tokenizer = load(**{name: {key: ["he", "<a>", {"content": "<b>", "rstrip": True}]}})
    assert tokenizer.encode("the<b> <a>") == spell("t", load().vocab["he"], 321, 320)
    if key == "extra_special_tokens":
        assert load(**{name: {key: {"image_token": "<a>"}}}).encode("x<a>") == spell("x", 320)


OLD, NEW = "additional_special_tokens", "extra_special_tokens"


@pytest.mark.parametrize(
    ("config", "special_map", "found"),
    [
        ({OLD: ["<a>"]}, {OLD: ["<b>"]}, ["<a>"]),
        ({NEW: ["<a>"]}, {OLD: ["<b>"]}, ["<a>"]),
        ({OLD: []}, {OLD: ["<b>"]}, []),
        ({OLD: ["<a>"]}, {NEW: ["<b>"]}, ["<a>", "<b>"]),
        ({OLD: ["<a>"], NEW: ["<b>"]}, {}, ["<b>"]),
        ({}, {OLD: ["<b>", "<a>"]}, ["<b>", "<a>"]),
        ({"image_token": "<a>"}, {OLD: ["<b>"]}, ["<a>", "<b>"]),
        ({OLD: ["<b>"]}, {"image_token": "<a>"}, ["<a>", "<b>"]),
    ],
)
def test_which_lists_of_special_tokens_count(config, special_map, found, load):
    tokenizer = load(tokenizer_config=config, special_tokens_map=special_map)
    assert [tokenizer.encode(name)[0] for name in found] == list(range(320, 320 + len(found)))
    assert tokenizer.n_vocab == 320 + len(found)


def test_special_tokens_that_have_names(load, spell, caplog):
    mask = {"content": "he", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    tokenizer = load(special_tokens_map={"mask_token": mask, "pad_token": "<pad>"})
    assert tokenizer.encode("we  he") == spell("we", tokenizer.vocab["he"])
    assert tokenizer.n_vocab == 320 and "the special token '<pad>' is not in the vocabulary" in caplog.text


@pytest.mark.parametrize(
    ("config", "own", "adds"),
    [
        ({"add_prefix_space": True}, False, True),
        ({"add_prefix_space": False}, True, False),
        (GPT2, True, False),
        (GPT2 | {"add_prefix_space": True}, False, True),
        ({}, True, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}, False, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True, True),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_the_space_before_a_text(config, own, adds, inside, description, tmp_path, spell):
    step = description["pre_tokenizer"] = description["pre_tokenizer"] | {"add_prefix_space": own}
    if inside:
        digits = {"type": "Digits", "individual_digits": True}
        description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, step]}
    write_json(one_file(tmp_path, description), "tokenizer_config.json", config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the mill") == spell(" the mill" if adds else "the mill")
    again = tmp_path / "again"
    again.mkdir()
    for name, content in tokenizer.files().items():
        (again / name).write_bytes(content)
    assert load_tokenizer(again).encode("the mill") == tokenizer.encode("the mill")


@pytest.mark.parametrize(("key", "says"), [("add_bos_token", "begin it"), ("add_eos_token", "end it")])
def test_what_is_not_added_is_said(key, says, description, tmp_path, spell, caplog):
    write_json(write_pair(tmp_path, description), "tokenizer_config.json", {key: True})
    assert load_tokenizer(tmp_path).encode("the") == spell("the")
    assert f"{key} is set, but nothing is added to a text here: {says}" in caplog.text
    write_json(tmp_path, "tokenizer_config.json", {key: False})
    caplog.clear()
    load_tokenizer(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"added_tokens_decoder": []}, "added_tokens_decoder is of the wrong JSON type"),
        ({"added_tokens_decoder": {"320": "<a>"}}, "an added token is of the wrong JSON type"),
        ({"added_tokens_decoder": {"320": {}}}, "an added token's content is of the wrong JSON type"),
        ({"added_tokens_decoder": {"-1": {"content": "<a>"}}}, "added_tokens_decoder makes no sense; got '-1'"),
        ({"added_tokens_decoder": {"٣": {"content": "<a>"}}}, "an id in added_tokens_decoder makes no sense"),
        ({"added_tokens_decoder": {"9" * 40: {"content": "<a>"}}}, "an id in added_tokens_decoder makes no sense"),
        ({"added_tokens_decoder": {"99999999": {"content": "<a>"}}}, "makes no sense; got 99999999"),
        ({"added_tokens_decoder": {"320": {"content": "<a>", "lstrip": 1}}}, "lstrip of an added token is neither"),
        ({"added_tokens_decoder": {"320": {"content": "a" * 1025}}}, "an added token is absurdly long"),
        ({"added_tokens_decoder": {"1": {"content": "<a>"}}}, "share an id; got 1 for"),
        ({"added_tokens_decoder": {"320": {"content": "!"}}}, "an added token has two ids; got 320 and 1 for '!'"),
        ({"added_tokens_decoder": {"320": {"content": "<a>"}, "321": {"content": "<a>"}}}, "two ids; got 320 and 321"),
        ({"added_tokens_decoder": {"320": {"content": "<a>"}, "0320": {"content": "<b>"}}}, "share an id; got 320"),
        ({"additional_special_tokens": "<a>"}, "additional_special_tokens is of the wrong JSON type"),
        ({"additional_special_tokens": [7]}, "additional_special_tokens is of the wrong JSON type"),
        ({"pad_token": 7}, "pad_token is of the wrong JSON type"),
        ({"add_prefix_space": "yes"}, "add_prefix_space is neither true nor false; got 'yes'"),
    ],
)
def test_spoilt_settings(config, words, load, tmp_path):
    with pytest.raises(TokenizerError, match=words) as caught:
        load(tokenizer_config=config)
    assert str(tmp_path) in str(caught.value)


# Sentencepiece: of each kind of model, the same tokens in whichever file they are.


@pytest.fixture
def with_added(sentencepiece_models, tmp_path):
    def make(kind="keeps all", **files):
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models[kind])
        for name, content in files.items():
            write_json(tmp_path, f"{name}.json", content)
        return load_tokenizer(tmp_path)

    return make


SIDE_FILES = {
    "added_tokens": {"added_tokens": {"<user>": 340, "<end>": 343}, "special_tokens_map": {"eos_token": "<end>"}},
    "added_tokens_decoder": {
        "tokenizer_config": {
            "eos_token": "<end>",
            "added_tokens_decoder": {"340": {"content": "<user>", **FLAGS}, "343": {"content": "<end>", **FLAGS}},
        }
    },
}


@pytest.mark.parametrize("files", SIDE_FILES)
@pytest.mark.parametrize("kind", ["keeps all", "dummy prefix", "dummy prefix, no extra", "no extra"])
def test_tokens_added_to_a_sentencepiece_model(files, kind, with_added, pieces):
    tokenizer, plain = with_added(kind, **SIDE_FILES[files]), pieces[kind]
    assert tokenizer.eos_id == 343 and tokenizer.n_vocab == 344 and not tokenizer.has(341)
    text = "the toad<user> in the mill🙂<user>by<end>"
    ids = tokenizer.encode(text)
    first = plain.encode("the toad")
    assert ids[: len(first) + 1] == [*first, 340] and ids[-1] == 343 and ids.count(340) == 2
    assert tokenizer.decode(ids) == text
    decoder = tokenizer.stream_decoder()
    assert "".join(decoder.push(i) for i in ids) + decoder.finish() == text
    for text in ("<user> by the well", "<user>by", "<user><user>", "<user>", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("the toad") == plain.encode("the toad")


def test_flags_of_tokens_added_to_a_sentencepiece_model(with_added, pieces):
    entry = {"content": "<a>", **FLAGS, "lstrip": True, "single_word": True}
    tokenizer = with_added(tokenizer_config={"added_tokens_decoder": {"340": entry}})
    toad = pieces["keeps all"].encode("toad")
    assert tokenizer.encode("toad \n <a>") == [*toad, 340]
    assert 340 not in tokenizer.encode("toad<a>s")
    assert with_added(special_tokens_map={"additional_special_tokens": ["<b>"]}).encode("toad<a>") != [*toad, 340]


def test_a_space_before_a_text_of_a_sentencepiece_model(with_added, pieces):
    with_space, without = pieces["dummy prefix"], pieces["keeps all"]
    assert with_added("keeps all", tokenizer_config={"add_prefix_space": True}).encode("toad") != without.encode("toad")
    assert (
        with_space.decode(with_added("dummy prefix", tokenizer_config={"add_prefix_space": False}).encode(" toad"))
        == "toad"
    )


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"340": "</s>"}, "an added token has two ids; got 340 and 2 for '</s>'"),
        ({"5": "<a>"}, "an added token has the id of a piece; got 5 for"),
    ],
)
def test_added_tokens_that_contradict_a_sentencepiece_model(entries, words, with_added):
    table = {token_id: {"content": content} for token_id, content in entries.items()}
    with pytest.raises(TokenizerError, match=words):
        with_added(tokenizer_config={"added_tokens_decoder": table})


def test_a_sentencepiece_tokenizer_with_added_tokens_makes_itself_again(with_added, tmp_path):
    tokenizer = with_added(**SIDE_FILES["added_tokens"])
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    again = load_tokenizer(tmp_path)
    assert again.encode("a<user>b<end>") == tokenizer.encode("a<user>b<end>") and again.eos_id == 343
    kinds = [(name, kind) for name, _, kind in tokenizer.pieces()]
    assert kinds[340:] == [("<user>", 4), ("[PAD341]", 5), ("[PAD342]", 5), ("<end>", 3)]


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "added_tokens.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ],
)
def test_a_link_that_leads_nowhere_is_not_absent(name, description, tmp_path):
    if name not in ("tokenizer.json", "tokenizer.model"):
        write_pair(tmp_path, description)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(TokenizerError, match=f"{name}: this is a link that leads nowhere"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".json", "a\0b", "a\0b.json", "a\0b/tokenizer.json"])
def test_paths_that_cannot_be(name, tmp_path):
    for path in (name, tmp_path / name):
        with pytest.raises(TokenizerError):
            load_tokenizer(path)


def test_a_byte_order_mark_before_merges(description, byte_level, tmp_path):
    path = write_pair(tmp_path, description) / "merges.txt"
    for text in (path.read_text("utf-8"), path.read_text("utf-8").split("\n", 1)[1]):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load_tokenizer(tmp_path).encode("the mill") == byte_level.encode("the mill")
