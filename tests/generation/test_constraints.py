"""Texts held to JSON schemas, regular expressions and grammars."""

from __future__ import annotations

import json
import os
import re
import sys
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.generation import GenerationParams, generate
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.generation.constraint import MOST_RULES
from refgpt.generation.draft_pace import DraftPace
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.openai import params_of, parse_chat, parse_completion
from refgpt.runtime import Runtime
from refgpt.tokenizers import Tokenizer, load_tokenizer
from tests.helpers.model_files import write_tokenizer
from tests.helpers.schemas import described, random_schema
from tests.helpers.small_tokenizers import SENTENCEPIECE_FLAGS, sentencepiece_model
from tests.helpers.tiny import random_params, tiny_config

pytest.importorskip("llguidance", reason="needs the extra [constrain]")

#: How many random schemas are tried; ten thousand take some minutes.
N_SCHEMAS = int(os.environ.get("REFGPT_SCHEMAS", "200"))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["old", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    return refgpt.load()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A model of 70 rows whose byte-level BPE has 62 tokens: the last rows have none."""
    config = tiny_config(n_vocab=70, n_ctx=64, bos_id=0, eos_id=0)
    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("byte_level")))
    return SimpleNamespace(
        engine=Runtime(random_params(config, seed=2), config, threads=1), tokenizer=tokenizer, mask="causal"
    )


class Words(Tokenizer):
    """Some strings of bytes."""

    def __init__(self, tokens: list[bytes], eos_id: int | None = None) -> None:
        super().__init__({i: token for i, token in enumerate(tokens) if token}, eos_id)

    def _encode(self, text: str, special: bool = True) -> list[int]:
        raise NotImplementedError


def write(model, prompt, **params):
    return generate(model, [model.tokenizer.encode(prompt)], GenerationParams(**params))[0]


def test_random_schemas_and_seeds(model):
    """All of them at once, each with its own schema and seed: every text that ends is what its schema describes."""
    schemas = [random_schema(Random(i)) for i in range(N_SCHEMAS)]
    texts, reasons, n_ended = [""] * N_SCHEMAS, [""] * N_SCHEMAS, 0
    scheduler = refgpt.Scheduler(model, 16)
    for i, schema in enumerate(schemas):
        constraint = refgpt.json_schema(schema, indent=bool(i % 4 == 0))
        scheduler.add("The toad said: ", constraint=constraint, seed=i, max_new_tokens=200)
    while scheduler.busy:
        for event in scheduler.step():
            assert event.error is None, event.error
            texts[event.seq] += event.text
            reasons[event.seq] = event.finish_reason or ""
    for text, reason, schema in zip(texts, reasons, schemas, strict=True):
        if reason == "stop":
            n_ended += 1
            assert described(json.loads(text), schema), (text, schema)
        else:
            assert reason == "length", (text, schema)
    assert n_ended >= 0.9 * N_SCHEMAS  # how soon it ends a string is the model's habit


@pytest.mark.parametrize(
    "prompt, pattern",
    [
        ("Seven times 7 is", r" \d{2}\."),
        ("", r"Once upon a (time|day)"),
        ("", r" two spaces"),
        ("The toad", r"( [a-zé]{1,5}){3}[.!?]"),
        ("\n", "[Kk]röte|ducks?"),
    ],
)
def test_texts_match_a_regular_expression(model, prompt, pattern):
    for one in model.generate(prompt, constraint=refgpt.regex(pattern), n=8, seed=1, max_new_tokens=40):
        assert re.fullmatch(pattern, one.text) and one.finish_reason == "stop"


def test_texts_of_a_byte_level_tokenizer(byte_level):
    pattern = "[A-Z][a-z]{2,5}(, [a-z]{3})?!"
    texts = write(byte_level, "It", constraint=refgpt.regex(pattern), n=20, seed=3, max_new_tokens=30)
    assert len({one.text for one in texts}) == 20
    for one in texts:
        assert re.fullmatch(pattern, one.text) and max(one.ids) < 62


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_speculation_changes_no_text_and_drafts_only_what_may_follow(model, temperature):
    constraint, prompt = refgpt.json_schema(SCHEMA), '{"name": "toad", "age": 7}\n{"name": "toad",, "age": 7}\n'
    asked = {"constraint": constraint, "temperature": temperature, "max_new_tokens": 60}
    ends = (seed for seed in range(20) if model.generate(prompt, seed=seed, **asked).finish_reason == "stop")
    asked["seed"] = next(ends)
    drafted, session = [], type(model.engine.session(1, 8))
    step = session.step

    def watched(self, parts, n_rows=None):
        drafted.extend(ids for _, ids, _ in parts if 1 < len(ids) < 9)
        return step(self, parts, n_rows)

    alone = model.generate(prompt, **asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "step", watched)
        assert model.generate(prompt, speculate=7, **asked) == alone
    assert re.fullmatch(r'\{ ?"name" ?: ?".*" ?, ?"age" ?: ?\d{1,3} ?(, ?"tags" ?: ?\[.*\] ?)?\}', alone.text)
    assert drafted
    for ids in drafted:
        text = model.tokenizer.decode(ids)
        assert ",," not in text and "\n" not in text


def test_what_has_to_follow_is_drafted(model, monkeypatch):
    """The names of properties and what stands between are checked several tokens at a time."""
    schema = {"const": {"a long name for a property of the toad": ["once upon a time", "there was an old mill"]}}
    asked = {"constraint": refgpt.json_schema(schema), "seed": 2, "max_new_tokens": 90}
    passes, session = [], type(model.engine.session(1, 8))
    step = session.step

    def counted(self, parts, n_rows=None):
        passes.append(parts)
        return step(self, parts, n_rows)

    monkeypatch.setattr(session, "step", counted)
    alone = model.generate("The toad: ", **asked)
    n_alone = len(passes)
    assert model.generate("The toad: ", speculate=8, **asked) == alone
    assert json.loads(alone.text) == schema["const"]
    assert len(passes) - n_alone < 0.7 * n_alone


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_draft_model_is_held_to_it_too_and_changes_no_text(model, temperature, monkeypatch, caplog):
    """Even where it drafts beyond the end of a text."""
    monkeypatch.setattr(DraftPace, "length", lambda self, room, n_texts=1: min(6, room))
    draft = refgpt.load(dtype="q4")
    constraint = refgpt.json_schema({"type": "array", "items": {"enum": ["old", 7]}, "minItems": 1, "maxItems": 3})
    asked = {"constraint": constraint, "temperature": temperature, "max_new_tokens": 40, "ignore_eos": True}
    scheduler = refgpt.Scheduler(model, 3, draft=draft)
    for seed in range(6):
        scheduler.add("The toad: ", seed=seed, **asked)
    texts = dict.fromkeys(range(6), "")
    while scheduler.busy:
        for event in scheduler.step():
            texts[event.seq] += event.text
    want = [model.generate("The toad: ", seed=seed, **asked).text for seed in range(6)]
    assert list(texts.values()) == want and not caplog.records
    assert all(isinstance(json.loads(text), list) for text in want)
    assert model.generate("The toad: ", seed=0, draft=draft, **asked).text == want[0]


def test_beams_are_complete_and_ranked(model):
    got = model.generate(
        "The toad: ", constraint=refgpt.json_schema(SCHEMA), num_beams=4, num_return_sequences=4, max_new_tokens=80
    )
    assert [one.score for one in got] == sorted((one.score for one in got), reverse=True)
    assert len({tuple(one.ids) for one in got}) == 4
    for one in got:
        value = json.loads(one.text)
        assert set(value) >= {"name", "age"} and len(value["name"]) <= 12


def test_beams_find_the_likeliest_of_all_texts(model):
    words = [" toad", " duck", " king", " well", " old toad"]
    ids = [model.tokenizer.encode("x" + word)[len(model.tokenizer.encode("x")) :] for word in words]
    constraint = refgpt.regex("( toad| duck| king| well| old toad)")
    best = model.generate("Once there was a", constraint=constraint, num_beams=30, length_penalty=0.0)
    scores = [one.sum() for one in model.score("Once there was a", ids)]
    assert best.score >= max(scores) - 1e-9 and best.text in words


def test_a_text_that_is_cut_off_is_told_from_a_complete_one(model):
    constraint = refgpt.regex("[a-z ]{30,}!")
    cut = model.generate("The toad", constraint=constraint, seed=1, max_new_tokens=5)
    assert (cut.finish_reason, len(cut.ids)) == ("length", 5)
    assert model.generate("The", constraint=constraint, num_beams=2, max_new_tokens=5).finish_reason == "length"
    # Complete, though it might have gone on.
    open_end = refgpt.regex(" [a-z ]+")
    got = model.generate("The toad", constraint=open_end, seed=1, max_new_tokens=5, ignore_eos=True)
    assert (got.finish_reason, len(got.ids)) == ("stop", 5)
    beam = model.generate("The toad", constraint=open_end, num_beams=2, max_new_tokens=5, ignore_eos=True)
    assert beam.finish_reason == "stop"


def test_a_text_ends_where_it_may_if_the_model_ends_it(model):
    """An end-of-text token may come where the text is complete, and nowhere else."""
    eos = model.tokenizer.eos_id
    matcher = ConstraintMatcher(refgpt.regex("ab?"), model.tokenizer, {eos}, [5])
    a, b = (model.tokenizer.vocab[letter] for letter in "ab")
    assert not matcher.possible([])[eos] and matcher.possible([])[a]
    assert matcher.possible([a])[eos] and matcher.possible([a])[b] and matcher.possible([a]).sum() <= 4
    assert matcher.complete([a]) and not matcher.over([a]) and matcher.over([a, b])


def test_what_else_was_asked_for_cannot_undo_a_constraint(model):
    constraint = refgpt.regex("[a-z ]{20}[.]")
    asked = {"constraint": constraint, "seed": 1, "max_new_tokens": 30}
    forced = model.generate("The", forced_eos_token_id=1, **(asked | {"max_new_tokens": 4}))
    assert forced.finish_reason == "length" and re.fullmatch("[a-z ]+", forced.text)
    wild = model.generate("The", logits_processor=lambda ids, row: np.zeros_like(row), min_new_tokens=28, **asked)
    assert re.fullmatch("[a-z ]{20}[.]", wild.text)
    with pytest.raises(GenerationError, match=r"^after 2 tokens: no token is left that may be drawn"):
        model.generate([5, 6], constraint=constraint, suppress_tokens=list(range(4096)))


@pytest.mark.parametrize("flags", SENTENCEPIECE_FLAGS)
@pytest.mark.parametrize("before", [[], [1], "the mill", " "])
def test_every_treatment_of_the_first_space(flags, before, tmp_path):
    """Whatever is drawn, the text as it is decoded after its prompt matches."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(flags))
    tokenizer, rng, pattern = load_tokenizer(tmp_path), Random(1), r" the [a-z]{1,9}|an old {1,3}toad"
    prompt = tokenizer.encode(before) if isinstance(before, str) else before
    matcher, texts = ConstraintMatcher(refgpt.regex(pattern), tokenizer, {2}, prompt), set()
    for _ in range(40):
        ids = []
        while not matcher.over(ids):
            ids.append(rng.choice([i for i in np.flatnonzero(matcher.possible(ids)).tolist() if i != 2]))
        decoder = tokenizer.stream_decoder()
        for i in prompt:
            decoder.push(i)
        texts.add("".join(map(decoder.push, ids)) + decoder.finish())
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert {text[:2] for text in texts} == {" t", "an"}


LANGUAGE = ["toad", "to", "toads sing", "über", "un peu", "\n\n", "a\tb", "tomato"]


@pytest.mark.parametrize("kind", ["regex", "grammar", "json"])
def test_masks_are_exact(kind):
    """Of a language that can be listed: a token may follow if what comes of it begins a text of the language."""
    texts = [json.dumps(word, ensure_ascii=False) for word in LANGUAGE] if kind == "json" else LANGUAGE
    if kind == "json":
        constraint = refgpt.json_schema({"enum": LANGUAGE})
    elif kind == "regex":
        constraint = refgpt.regex("|".join(map(re.escape, LANGUAGE)))
    else:
        constraint = refgpt.grammar("start: " + " | ".join(map(json.dumps, LANGUAGE)))
    pieces = {text.encode()[i:j] for text in texts for i in range(len(text) + 1) for j in range(i + 1, i + 4)}
    pieces |= {bytes([i]) for i in range(256)} | {b"toast", b"\xc3\xbcb", b"\xbc", b" s", b"ads"}
    tokens = [b"", *sorted(pieces - {b""}), b"", b"to"]  # with gaps, and one token twice
    tokenizer = Words([*tokens, b"<end>"], eos_id=len(tokens))
    matcher = ConstraintMatcher(constraint, tokenizer, {len(tokens)})
    language, rng, n_met = [text.encode() for text in texts], Random(1), 0
    for _ in range(120):
        ids, so_far = [], b""
        while True:
            begun = [i for i, t in enumerate(tokens) if t and any(x.startswith(so_far + t) for x in language)]
            if kind == "json":  # the same string with escapes is JSON too: only the listed spelling is looked at
                possible = set(np.flatnonzero(matcher.possible(ids))) - {len(tokens)}
                begun = sorted(possible & set(begun))
                assert begun or not possible or so_far in language
            else:
                want = begun + [len(tokens)] * (so_far in language)
                assert np.flatnonzero(matcher.possible(ids)).tolist() == want
            assert matcher.complete(ids) == (so_far in language)
            n_met += so_far in language
            if not begun or (so_far in language and rng.random() < 0.5):
                break
            ids = [*ids, rng.choice(begun)]
            so_far += tokens[ids[-1]]
        if ids:
            assert matcher.n_possible(ids[:1], [*ids[1:], len(tokens)]) == len(ids) - 1
    assert n_met > 60


def test_a_matcher_may_go_back_and_over_to_another_text(model):
    rng, eos = Random(3), model.tokenizer.eos_id
    constraint = refgpt.json_schema(SCHEMA)
    wandering = ConstraintMatcher(constraint, model.tokenizer, {eos}, [5])
    texts = [[]]
    for _ in range(60):
        text = rng.choice(texts)
        possible = wandering.possible(text).copy()
        fresh = ConstraintMatcher(constraint, model.tokenizer, {eos}, [5])
        assert (fresh.possible(text) == possible).all()
        assert fresh.complete(text) == wandering.complete(text) and fresh.over(text) == wandering.over(text)
        following = [i for i in np.flatnonzero(possible).tolist() if i != eos]
        if following:
            texts.append([*text, rng.choice(following)])
    assert max(map(len, texts)) > 5


def test_half_a_character_before_the_text_is_not_part_of_it(model):
    half = model.tokenizer.encode("x侯")[:-1]
    assert model.tokenizer.decode(half).endswith("\ufffd")
    constraint = refgpt.regex("[a-z]{3}")
    assert re.fullmatch("[a-z]{3}", model.generate(half, constraint=constraint, seed=1).text)
    assert re.fullmatch("[a-z]{3}", model.generate(half, constraint=constraint, num_beams=2).text)


def test_grammars_in_both_syntaxes(model):
    lark = refgpt.grammar('start: "(" item ("," item)* ")"\nitem: /[a-c]/ | start')
    gbnf = refgpt.grammar('root ::= " yes" | " no, " reason\nreason ::= [a-z]{2,5} "!"')
    for one in model.generate("f", constraint=lark, n=5, seed=2, max_new_tokens=80):
        assert one.finish_reason == "length" or re.fullmatch(r"[(),a-c]+", one.text)
        assert one.finish_reason == "length" or one.text.count("(") == one.text.count(")")
    for one in model.generate("Is it?", constraint=gbnf, n=5, seed=2):
        assert re.fullmatch(" yes| no, [a-z]{2,5}!", one.text)


@pytest.mark.parametrize(
    "make, given, said",
    [
        (refgpt.regex, "[a", r"^regex: cannot be used; got .*unclosed character class"),
        (refgpt.regex, r"(?=a)b", r"^regex: cannot be used; got .*look-around"),
        (refgpt.regex, "\ud800", r"^regex: holds a lone surrogate"),
        (refgpt.grammar, 'start: "\ud800"', r"^grammar: holds a lone surrogate"),
        (refgpt.regex, 3, r"^regex: is no text; got 3"),
        (refgpt.grammar, "start: foo", r'^grammar: cannot be used; got at 1\(8\): unknown name: "foo"'),
        (refgpt.grammar, "root ::= foo (", r"^grammar: is no grammar; got Expected '\)'"),
        (refgpt.grammar, None, r"^grammar: is no text"),
        (refgpt.json_schema, "{", r"^json_schema: is no JSON schema; got '{': Expecting"),
        (refgpt.json_schema, 3, r"^json_schema: is no JSON schema; got 3: wanted a mapping"),
        (refgpt.json_schema, {"a": float("nan")}, r"^json_schema: is no JSON schema"),
        (refgpt.json_schema, {"type": "array", "uniqueItems": True}, r"Unimplemented keys: \[\"uniqueItems\"\]"),
        (refgpt.json_schema, {"$ref": "http://127.0.0.1:9/x"}, r"^json_schema: cannot be used"),
        (refgpt.json_schema, False, r"^json_schema: cannot be used; got .*Unsatisfiable schema"),
    ],
)
def test_constraints_that_cannot_be_used_are_refused_where_they_are_made(make, given, said):
    with pytest.raises(GenerationError, match=said):
        make(given)


def chain(n: int) -> str:
    return "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(n)) + f'a{n}: "x"'


def test_long_chains_of_rules_do_not_overflow_the_stack(model):
    """The library compiles each rule within the one before: it would end the process."""
    defs = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(4000)}
    schema = {"$defs": {**defs, "a4000": {"type": "null"}}, "$ref": "#/$defs/a0"}
    for constraint in (refgpt.grammar(chain(4000)), refgpt.json_schema(schema)):
        assert ConstraintMatcher(constraint, model.tokenizer, {1}).possible([]).any()
    with pytest.raises(GenerationError, match=r"^grammar: has too many rules or parts"):
        refgpt.grammar(chain(MOST_RULES))
    with pytest.raises(GenerationError, match=r"^grammar: has more than 500 rules of GBNF"):
        refgpt.grammar("root ::= a\n" * 501)


def test_a_grammar_of_no_text_is_refused_before_anything_is_computed(model):
    for constraint in (refgpt.grammar("start: a\na: a"), refgpt.json_schema({"$ref": "#"})):
        with pytest.raises(GenerationError, match=r"^constraint: there is no text that it describes"):
            model.generate("x", constraint=constraint)


def test_what_is_no_constraint_is_refused(model):
    with pytest.raises(GenerationError, match=r"^constraint: cannot be used; got 'x'; wanted what refgpt.json_schema"):
        model.generate("a", constraint="x")
    bare = SimpleNamespace(engine=model.engine, tokenizer=None, mask="causal")
    with pytest.raises(GenerationError, match=r"^a constraint is about text, and this model has no tokenizer"):
        refgpt.Scheduler(bare).add([1], constraint=refgpt.regex("a"))


def test_a_constraint_that_grows_too_large_ends_its_own_request_only(model):
    """The library gives up on a text that becomes ambiguous in too many ways."""
    huge = refgpt.grammar("start: a\na: a a | " + " | ".join(f'"{chr(97 + i)}"' for i in range(20)))
    scheduler = refgpt.Scheduler(model, 4)
    bad = scheduler.add("The", constraint=huge, seed=1, max_new_tokens=400, ignore_eos=True)
    good = scheduler.add("The", seed=1, max_new_tokens=3, ignore_eos=True)
    errors, n_good = [], 0
    while scheduler.busy:
        for event in scheduler.step():
            n_good += event.seq == good
            errors += [event.error] if event.seq == bad and event.error else []
    assert n_good == 3
    for error in errors:
        assert isinstance(error, GenerationError) and str(error).startswith("constraint: ")


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (refgpt.json_schema, refgpt.regex, refgpt.grammar):
        with pytest.raises(GenerationError, match=r'needs llguidance; pip install "refgpt\[constrain\]"'):
            make("{}")


def test_the_command_line(run, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (tmp_path / "grammar.gbnf").write_text('root ::= " yes" | " no"', encoding="utf-8")
    said = run("generate", "The toad: ", "--json-schema", tmp_path / "schema.json", "--seed", 1)
    assert set(json.loads(said.out)) >= {"name", "age"}
    assert run("generate", "Is it?", "--grammar", tmp_path / "grammar.gbnf", "--seed", 1).out in (" yes\n", " no\n")
    assert re.fullmatch(r" \d\d\n", run("generate", "It is", "--regex", r" \d\d", "--num-beams", 2).out)
    broken = run("generate", "x", "--grammar", tmp_path / "schema.json")
    assert broken.code == 1 and "schema.json, grammar: cannot be used" in broken.err
    (tmp_path / "schema.json").write_bytes(b"\xff")
    assert "is not UTF-8 text" in run("generate", "x", "--json-schema", tmp_path / "schema.json").err


def test_requests_in_openais_form_and_in_files():
    schema, messages = {"enum": ["a"]}, [{"role": "user", "content": "x"}]
    wanted = {
        "text": ({"type": "text"}, None),
        "object": ({"type": "json_object"}, refgpt.json_schema({"type": "object"})),
        "schema": ({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, refgpt.json_schema(schema)),
    }
    for given, constraint in wanted.values():
        assert parse_completion({"prompt": "x", "response_format": given}).params.constraint == constraint
        assert (
            parse_chat({"messages": messages, "response_format": given}, TEMPLATES["base"], 9).params.constraint
            == constraint
        )
    for given in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 3}}, "json", {}):
        with pytest.raises(GenerationError, match=r"^(response_format: cannot be used|json_schema: is no JSON schema)"):
            parse_completion({"prompt": "x", "response_format": given})
    base = refgpt.GenerationParams()
    assert params_of({"regex": "a+"}, base).constraint == refgpt.regex("a+")
    assert params_of({"grammar": 'start: "a"'}, base).constraint == refgpt.grammar('start: "a"')
    assert params_of({"json_schema": schema, "constraint": "ignored"}, base).constraint == refgpt.json_schema(schema)
    with pytest.raises(GenerationError, match=r"^regex: cannot be used"):
        params_of({"regex": "["}, base)
