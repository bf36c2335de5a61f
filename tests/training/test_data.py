"""Texts to learn from: what is learned of each form, and that nothing is dropped in silence."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import DataError, RefgptError
from refgpt.generation.chat_templates import TEMPLATES, chat_template
from refgpt.training.data import find_splits, read_texts
from refgpt.training.examples import Encoder, batch_of, pieces_of
from tests.helpers.finetune_files import CONFIG, write_lines, write_small_model

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return refgpt.load_tokenizer(write_small_model(tmp_path_factory.mktemp("model") / "model"))


def parts(tokenizer, example):
    """What is learned, and what is not, as text with [learned] in brackets; the end of a text is a bar."""
    told, learning = "", False
    for i, wanted in zip(example.ids.tolist(), example.wanted.tolist(), strict=True):
        told += ("[" if wanted and not learning else "]" if learning and not wanted else "") + (
            "|" if i == 0 else tokenizer.decode([i])
        )
        learning = wanted
    return told + ("]" if learning else "")


@pytest.mark.parametrize(
    ("record", "options", "want"),
    [
        ({"text": "Oh no"}, {}, ["[Oh no|]"]),
        ({"text": "Oh no"}, {"end": False}, ["[Oh no]"]),
        ({"prompt": "Hi", "completion": " you", "id": 3}, {}, ["Hi[ you|]"]),
        ({"prompt": "Hi", "completion": " you"}, {"loss": "all"}, ["[Hi you|]"]),
        ({"prompt": "", "completion": "Hm"}, {}, ["|[Hm|]"]),
        ({"prompt": "Hi", "completion": ""}, {}, []),
        ({"text": ""}, {}, []),
        ({"messages": TALK}, {}, ["Question- Hi\nAnswer-[ Yes\n\n|]"]),
        (
            {"messages": [{"role": "system", "content": "Be"}, *TALK, *TALK]},
            {},
            ["Be\n\nQuestion- Hi\nAnswer-[ Yes\n\n]Question- Hi\nAnswer-[ Yes\n\n|]"],
        ),
        (
            {"messages": [*TALK, *TALK]},
            {"prefix": True},
            ["Question- Hi\nAnswer-[ Yes\n\n]", "Question- Hi\nAnswer- Yes\n\nQuestion- Hi\nAnswer-[ Yes\n\n|]"],
        ),
    ],
)
def test_what_is_learned_of_each_form(tokenizer, record, options, want):
    template = TEMPLATES["gpt-jt"]
    template = type(template)("", "", "Question- ", "\nAnswer-", "\n\n", ())
    examples = Encoder(CONFIG, tokenizer, template, **options).encode(record)
    assert [parts(tokenizer, example) for example in examples] == want
    for example in examples:
        learned = example.wanted.nonzero()[0]
        assert example.prefix_len == (learned[0] if options.get("prefix") else 0)
        assert (example.labels == np.where(example.wanted, example.ids, -100)).all()


def test_ids_of_a_completion_are_those_that_score_gives_it():
    """The default model's sentencepiece puts a space before a text of its own; in a completion there is none."""
    model = refgpt.load()
    encoder = Encoder(model.config, model.tokenizer, TEMPLATES["base"], end=False)
    for prompt, completion in (("Once upon", " a time"), ("Once up", "on a time"), ("It is ", "so"), ("one\n", "two")):
        (example,) = encoder.encode({"prompt": prompt, "completion": completion})
        from refgpt.generation import encode_continuations

        ids, (after,) = encode_continuations(prompt, [completion], model.config, model.tokenizer)
        assert example.ids.tolist() == [*ids, *after]
        assert example.wanted.tolist() == [False] * len(ids) + [True] * len(after)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "keys"),
        ({"prompt": "Hi"}, "keys"),
        ({"text": "a", "messages": TALK}, "keys"),
        ({"text": 3}, "text is no text"),
        ({"prompt": "Hi", "completion": None}, "completion is no text"),
        ({"messages": "Hi"}, "messages: cannot be used"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: cannot be used"),
        ({"messages": []}, "cannot be used"),
        ({"messages": TALK[:1]}, "do not end with an answer"),
        ({"messages": [*TALK, TALK[0]]}, "do not end with an answer"),
        ({"messages": [TALK[0], {"role": "tool", "content": "x"}]}, "role"),
    ],
)
def test_records_of_no_form_are_refused(tokenizer, record, fault):
    with pytest.raises(RefgptError, match=fault):
        Encoder(CONFIG, tokenizer, TEMPLATES["base"]).encode(record)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_learned_in_the_format_in_which_it_will_be_asked(name):
    template = chat_template(name)
    talk = [{"role": "system", "content": "Be"}, *TALK, *TALK]
    pieces = template.pieces_of(talk)
    assert [wanted for _, wanted in pieces] == [False, True] * 2
    for i in (0, 2):
        assert "".join(text for text, _ in pieces[: i + 1]) == template.prompt_of(talk[: i + 2])


def read(tokenizer, path, most=20, **options):
    return read_texts(path, Encoder(CONFIG, tokenizer, TEMPLATES["base"]), most, **options)


def test_what_is_left_out_is_counted_and_named(tokenizer, tmp_path):
    long = {"prompt": "x" * 15, "completion": "y" * 9}
    path = write_lines(
        tmp_path / "train.jsonl",
        [{"text": "one"}, "", {"text": ""}, "{", long, '{"text": "a", "text": "b"}', "[1]", {"text": "\u4e00"}],
    )
    texts = read(tokenizer, path)
    assert len(texts.examples) == 1 and texts.n_tokens == 4 and texts.n_targets == 3
    assert {why: len(places) for why, places in texts.left_out.items()} == {"empty": 2, "malformed": 4, "too long": 1}
    told = "\n".join(texts.summary())
    for part in ("empty: 2 (line 2; line 3)", "too long: 1 (line 5: 25 tokens)", "line 4: the text is not JSON"):
        assert part in told
    assert "line 6: a key is given twice" in told and "line 8" in told
    with pytest.raises(DataError, match=r"train.jsonl, line 4: the text is not JSON"):
        read(tokenizer, path, strict=True)
    cut = read(tokenizer, path, too_long="cut")
    assert cut.n_cut == 1 and [len(example) for example in cut.examples] == [4, 20]


@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize("prefix", [False, True])
def test_only_a_text_without_a_prompt_is_cut_into_pieces(tokenizer, tmp_path, loss, prefix):
    path = write_lines(tmp_path / "train.jsonl", [{"prompt": "x" * 15, "completion": "y" * 9}, {"text": "z" * 30}])
    encoder = Encoder(CONFIG, tokenizer, TEMPLATES["base"], loss, prefix)
    skipped, cut = (read_texts(path, encoder, 20, too_long=what) for what in ("skip", "cut"))
    assert skipped.left_out == {"too long": ["line 1: 25 tokens"]}
    assert [(len(one), one.prefix_len) for one in skipped.examples] == [(20, 0), (12, 0)]
    assert [(len(one), one.prefix_len) for one in cut.examples] == [(20, 15 if prefix else 0), (20, 0), (12, 0)]


def test_faults_of_a_text_say_where_they_are(tokenizer, tmp_path):
    path = write_lines(tmp_path / "train.jsonl", [{"messages": 3}, {"text": "one"}])
    assert "line 1: messages: cannot be used, got 3" in "".join(read(tokenizer, path).summary())
    with pytest.raises(RefgptError, match=r"train.jsonl, line 1, messages: cannot be used"):
        read(tokenizer, path, strict=True)
    (tmp_path / "tale.txt").write_text("one\x00", encoding="utf-8")
    with pytest.raises(RefgptError, match=r"tale.txt, the text: no token spells this character"):
        read(tokenizer, tmp_path / "tale.txt")


def test_many_places_are_not_all_named(tokenizer, tmp_path):
    texts = read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"text": "one"}, *["{"] * 50]))
    assert "malformed: 50" in texts.summary()[1] and "and 45 more" in texts.summary()[1]


def test_nothing_that_a_file_says_reaches_a_terminal_raw(tokenizer, tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"text": "one"}, {"prompt\x1b[31m": 1}])
    assert "\x1b" not in "\n".join(read(tokenizer, path).summary())


@pytest.mark.parametrize("n", [2, 5, 20, 21, 39, 40, 41])
def test_a_long_text_is_cut_into_pieces_that_predict_every_token_once(tokenizer, tmp_path, n):
    (tmp_path / "tale.txt").write_text("abcdefghij" * 5)
    (example,) = Encoder(CONFIG, tokenizer, TEMPLATES["base"]).encode({"text": ("abcdefghij" * 5)[: n - 1]})
    pieces = pieces_of(example, 20)
    assert [i for piece in pieces for i in piece.ids[1:].tolist()] == example.ids[1:].tolist()
    assert all(2 <= len(piece) <= 20 and piece.wanted.all() for piece in pieces)
    texts = read(tokenizer, tmp_path / "tale.txt")
    assert texts.n_targets == 50 and [len(one) for one in texts.examples] == [20, 20, 13]


def test_a_folder_has_its_parts(tmp_path):
    write_lines(tmp_path / "train.jsonl", [])
    (tmp_path / "valid.txt").write_text("x")
    assert find_splits(tmp_path) == {"train": tmp_path / "train.jsonl", "valid": tmp_path / "valid.txt"}
    assert find_splits(tmp_path / "valid.txt") == {"train": tmp_path / "valid.txt"}
    (tmp_path / "train.jsonl").unlink()
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError):
            find_splits(place)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff{}", b'{"text": ""}\n'])
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_files_without_a_text_are_refused(tokenizer, tmp_path, name, content):
    if name == "x.txt" and content in (b"\n\n", b'{"text": ""}\n'):
        return
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"x\."):
        read(tokenizer, tmp_path / name)


def test_a_line_that_never_ends_is_not_read_whole(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("refgpt.training.data.LONGEST_LINE", 50)
    write_lines(tmp_path / "x.jsonl", [{"text": "a" * 80}])
    with pytest.raises(DataError, match="a line is too long"):
        read(tokenizer, tmp_path / "x.jsonl")


def test_a_batch_is_padded_on_the_right(tokenizer):
    encoder = Encoder(CONFIG, tokenizer, TEMPLATES["base"], prefix=True)
    examples = [encoder.encode({"prompt": p, "completion": " b"})[0] for p in ("a", "aaa")]
    batch = batch_of(examples)
    assert batch.lens.tolist() == [4, 6] and batch.prefix_lens.tolist() == [1, 3]
    for i, example in enumerate(examples):
        assert (batch.ids[i, : len(example)] == example.ids).all()
        assert (batch.labels[i, : len(example)] == example.labels).all()


def test_the_digest_depends_on_everything_that_is_learned(tokenizer, tmp_path):
    records = [{"prompt": "a", "completion": "b"}, {"prompt": "ab", "completion": ""}, {"text": "ab"}]
    paths = [write_lines(tmp_path / f"{i}.jsonl", [{"text": "x"}, record]) for i, record in enumerate(records)]
    digests = {read(tokenizer, path).digest() for path in paths}
    assert len(digests) == 3 and read(tokenizer, paths[0]).digest() in digests
