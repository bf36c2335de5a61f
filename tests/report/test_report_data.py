"""What a page holds, against what tracing finds by itself; and tokens that can be seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import refgpt
from refgpt import tracing
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.generation.sampling import log_softmax
from refgpt.inspect import build_report, html_bytes, most_tokens, prompt_of
from refgpt.inspect.data import MOST_BYTES, likeliest
from refgpt.inspect.heads import kind_scores, opening, titles
from refgpt.inspect.labels import label
from tests.helpers.model_files import write_model
from tests.helpers.pages import EVIL, PROMPT, EvilTokenizer, data_of, unpacked, with_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=3)
IDS = [5, 17, 60, 5, 0, 33, 17, 8, 1]


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """A tiny GPT-JT, whose prompt sees itself both ways, without a tokenizer."""
    return refgpt.load(write_model(tmp_path_factory.mktemp("report") / "both_ways", CONFIG, PARAMS, prefix=True))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return refgpt.load(write_model(tmp_path_factory.mktemp("report") / "causal", CONFIG, PARAMS))


def pattern_of(data, n):
    """[n_layer, n_head, t, s] in shares, NaN where the mask hides: read as the format says, one query after another."""
    steps = unpacked(data["pattern"])
    found = np.full((*steps.shape[:2], n, n), np.nan)
    start = 0
    for query in range(n):
        seen = max(query + 1, data["prefix_len"])
        found[:, :, query, :seen] = steps[:, :, start : start + seen] / 65535
        start += seen
    assert start == steps.shape[-1]
    return found


@pytest.mark.parametrize("prefix_len", [0, 1, 4, len(IDS)])
def test_patterns_are_those_of_the_trace(causal, prefix_len):
    data = data_of(build_report(causal, IDS, prefix_len, verify=False))
    found = pattern_of(data, len(IDS))
    trace = causal.trace(IDS, prefix_len, "blocks.*.pattern")
    for i in range(CONFIG.n_layer):
        want = trace[f"blocks.{i}.pattern"]
        assert (want[np.isnan(found[i])] == 0).all()
        assert (np.abs(np.nan_to_num(found[i]) - want) <= 0.5000001 / 65535).all()
    # It tells a query from a key: its transpose would not pass.
    assert np.abs(np.nan_to_num(found.swapaxes(-1, -2)) - np.stack(list(trace.values()))).max() > 0.01


def test_the_mask_is_the_models_own(both_ways, causal):
    data = data_of(build_report(both_ways, IDS))
    assert data["prefix_len"] == len(IDS) and not np.isnan(pattern_of(data, len(IDS))).any()
    assert data_of(build_report(causal, IDS))["prefix_len"] == 0
    assert dict(data["facts"])["mask"].startswith("prefix (attn.bias is all ones")
    assert dict(data["facts"])["mask"].endswith("here the first 9 of 9 positions see one another")


def test_predictions_are_the_softmax_of_the_logits(causal):
    data = data_of(build_report(causal, IDS, 3, verify=False))
    p = np.exp(log_softmax(causal.trace(IDS, 3, "logits")["logits"]))
    given, rank = unpacked(data["predictions"]["given"]), unpacked(data["predictions"]["rank"])
    for t, (best, found) in enumerate(zip(*(unpacked(data["predictions"][key]) for key in ("ids", "p")), strict=True)):
        assert best.tolist() == np.argsort(-p[t], kind="stable")[:10].tolist()
        assert (found == p[t, best].astype(np.float32)).all()
    assert given.tolist() == [np.float32(p[t, IDS[t + 1]]) for t in range(len(IDS) - 1)]
    assert rank.tolist() == [1 + np.sum(p[t] > p[t, IDS[t + 1]]) for t in range(len(IDS) - 1)]


def test_the_lens_and_the_attribution_are_those_of_tracing(causal):
    data = data_of(build_report(causal, IDS, 3, verify=False))
    logits = tracing.logit_lens(causal, IDS, 3)
    best, p = unpacked(data["lens"]["ids"]), unpacked(data["lens"]["p"])
    assert best.shape == p.shape == (CONFIG.n_layer + 1, len(IDS), 5)
    assert (best[..., 0] == logits.argmax(-1)).all()
    assert (p == np.take_along_axis(np.exp(log_softmax(logits)), best.astype(int), -1).astype(np.float32)).all()
    want, found = tracing.logit_attribution(causal, IDS, prefix_len=3), data["attribution"]
    assert found == {
        "token": want.token,
        "embed": want.embed,
        "heads": want.heads.tolist(),
        "bias": want.bias,
        "mlps": want.mlps.tolist(),
        "attn_biases": want.attn_biases.tolist(),
        "total": want.total,
        "logit": want.logit,
    }
    terms = found["embed"] + np.sum(found["heads"]) + np.sum(found["mlps"]) + found["bias"]
    assert abs(terms - found["logit"]) < 1e-5


def test_the_continuation_is_greedy_with_the_same_mask(causal, both_ways):
    for model, prefix_len in ((causal, 0), (causal, 4), (both_ways, len(IDS))):
        data = data_of(build_report(model, IDS, prefix_len, verify=False))
        ids = list(IDS)
        for _ in range(12):
            ids.append(int(model.logits(ids, prefix_len)[-1].argmax()))
        assert data["continuation"] == ids[len(IDS) :] and data["text"] == [[], []]
        assert all(str(i) in data["tokens"] for i in ids)
    # It ends where the context does, and before a token that ends the text.
    whole = (IDS * 8)[: CONFIG.n_ctx]
    assert data_of(build_report(causal, whole[:-3], verify=False))["continuation"] == ids_after(causal, whole[:-3], 3)
    assert data_of(build_report(causal, whole, verify=False))["continuation"] == []
    third = ids_after(causal, IDS, 3)[2]
    config = dataclasses.replace(CONFIG, eos_id=third)
    ending = dataclasses.replace(causal, engine=type(causal.engine)(PARAMS, config, threads=1))
    wanted = ids_after(causal, IDS, 3)
    assert data_of(build_report(ending, IDS, verify=False))["continuation"] == wanted[: wanted.index(third)]


def ids_after(model, ids, n):
    return list(model.generate(ids, temperature=0, max_new_tokens=n, ignore_eos=True).ids)


def test_text_to_read_has_spaces_and_no_characters_that_mislead(causal):
    model = with_tokenizer(causal, EvilTokenizer())
    prompt, _ = data_of(build_report(model, [*range(len(EVIL) - 2)], verify=False))["text"]
    text, marks = "".join(prompt[::2]), prompt[1::2]
    assert "$data ${title} $$" in text and {"U+2028", "U+202E", "U+200B", "↵", "xFF"} <= set(marks)
    assert "\u202e" not in "".join(prompt) and "␣" not in "".join(prompt)
    long = data_of(build_report(model, [EVIL.index(b"x" * 4000)] * 3, verify=False))["text"][0]
    assert len("".join(long)) == 2001 and long[-1] == "…"


def pattern_that_looks(n, offset):
    """Every query at one key: so many before itself, or the first."""
    pattern = np.zeros((n, n))
    for t in range(n):
        pattern[t, max(0, t - offset)] = 1
    return pattern


def test_heads_are_titled_by_what_they_attend_to():
    ids = np.array([7, 3, 9, 4, 1, 7, 3, 9, 4, 1])  # repeated after five
    n = len(ids)
    even = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    kinds = {"previous token": 1, "induction": 4, "duplicate token": 5, "same position": 0, "first token": n}
    layer = np.stack([*(pattern_that_looks(n, offset) for offset in kinds.values()), even])
    scores = np.stack([kind_scores(layer, ids), kind_scores(layer[::-1].copy(), ids)])
    found = titles(scores, ids, 0)
    first, second = ({title["head"]: title for title in found if title["layer"] == i} for i in (0, 1))
    assert [first[i]["kind"] for i in range(5)] == list(kinds) and 5 not in first and 0 not in second
    assert [second[5 - i]["kind"] for i in range(5)] == list(kinds)
    assert all(title["score"] == 1 for title in found)
    assert opening(found, None) == {"layer": 0, "head": 1}  # induction
    assert opening([first[0], first[4]], None) == {"layer": 0, "head": 0}  # a previous token rather than a first one
    # Half of the attention is above the threshold, a third below.
    mixed = np.stack([0.5 * layer[0], 0.33 * layer[0]])
    assert [title["head"] for title in titles(kind_scores(mixed, ids)[None], ids, 0)] == [0]


def test_few_tokens_give_no_title(causal):
    for n in (1, 2, 3):
        ids = np.arange(n)
        assert titles(kind_scores(pattern_that_looks(n, 1)[None], ids)[None], ids, 0) == []
    # Two recurring tokens are too few for induction, three are enough.
    for n_recurring, enough in ((2, False), (3, True)):
        ids = np.array([*range(8), *range(n_recurring)])
        scores = kind_scores(pattern_that_looks(len(ids), 7)[None], ids)[None]
        assert (titles(scores, ids, 0) == [{"layer": 0, "head": 0, "kind": "induction", "score": 1.0}]) == enough
    # Without a title the page opens on the head that adds most to the likeliest token.
    data = data_of(build_report(causal, [7, 8], verify=False))
    assert data["heads"]["titles"] == []
    largest = np.argmax(data["attribution"]["heads"])
    assert data["heads"]["opening"] == {"layer": largest // CONFIG.n_head, "head": largest % CONFIG.n_head}


def test_scores_are_those_of_tracing(causal):
    scores = [kind_scores(causal.trace(IDS)[f"blocks.{i}.pattern"], np.array(IDS)) for i in range(CONFIG.n_layer)]
    want = tracing.head_scores(causal, IDS)
    for place, name in enumerate(("induction", "duplicate_token", "previous_token")):
        assert (np.stack(scores)[..., place] == getattr(want, name)).all()


def test_the_verdict_is_that_of_verify(causal):
    data, report = data_of(build_report(causal, IDS))["verify"], causal.verify(IDS)
    assert [tap[:5] for tap in data["taps"]] == [[t.name, t.ok, t.error, t.bound, t.ratio] for t in report.taps]
    assert [tap[6] for tap in data["taps"]] == [t.max_error for t in report.taps]
    assert (data["ok"], data["first_broken"], data["logit_error"]) == (True, None, report.logit_error)
    assert data_of(build_report(causal, IDS, verify=False))["verify"] is None


def test_a_broken_engine_is_shown_as_broken(causal):
    class Broken:
        """An engine that loses a row on the way."""

        def __getattr__(self, name):
            return getattr(causal.engine, name)

        def logits(self, ids, prefix_len=0, tap=lambda name, value: value):
            def bend(name, value):
                return tap(name, value * np.float32(1.001) if name == "blocks.1.z" else value)

            bend.names = getattr(tap, "names", None)
            return causal.engine.logits(ids, prefix_len, bend)

    verdict = data_of(build_report(dataclasses.replace(causal, engine=Broken()), IDS))["verify"]
    assert not verdict["ok"] and verdict["first_broken"] == "blocks.1.z"


def test_every_backend_and_dtype_makes_a_page(tmp_path):
    path = write_model(tmp_path / "tiny", CONFIG, PARAMS)
    for backend, dtype in (("c", "q4"), ("c", "f16"), ("numpy", None), ("numpy", "f64")):
        model = refgpt.load(path, backend=backend, dtype=dtype)
        data = data_of(build_report(model, IDS))
        assert data["verify"]["ok"] or (data["verify"]["first_broken"], backend) == ("blocks.0.mlp_post", "numpy")
        assert (dtype or "as stored (f32)") in dict(data["facts"])["weights"]


def test_one_token(causal):
    data = data_of(build_report(causal, [7]))
    assert (
        unpacked(data["pattern"]).tolist() == [[[65535]] * 4] * 2 and unpacked(data["predictions"]["given"]).size == 0
    )


def test_ids_without_a_token_are_named_by_number(causal, both_ways):
    assert data_of(build_report(causal, IDS, verify=False))["tokens"]["17"] == ["", "", "id 17"]
    evil = with_tokenizer(causal, EvilTokenizer())
    data = data_of(build_report(evil, [*range(len(EVIL)), 60], verify=False))
    assert data["tokens"]["60"] == ["", "", "id 60"]  # it does not exist
    assert data["tokens"][str(EVIL.index(b""))] == ["", "", f"id {EVIL.index(b'')}"]
    assert data["tokens"][str(EVIL.index(b"\xe2\x80"))] == ["e2 80", "", "xE2", "", "x80"]


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"girl", ["girl"]),
        (b" girl", ["", "␣", "girl"]),
        (b" a b ", ["", "␣", "a", "␣", "b", "␣"]),
        (b"  ", ["", "␣", "", "␣"]),
        ("␣".encode(), ["␣"]),  # the character itself is text, not a mark
        (b"\n\t\r", ["", "↵", "", "⇥", "", "␍"]),
        ("é\u00e9".encode(), ["éé"]),
        ("é".encode()[:1], ["", "xC3"]),
        (b"a\xffb", ["a", "xFF", "b"]),
        ("\u2028".encode(), ["", "U+2028"]),
        ("a\u202eb".encode(), ["a", "U+202E", "b"]),
        ("\u200b\ufeff".encode(), ["", "U+200B", "", "U+FEFF"]),
        (b"\x00\x7f", ["", "U+0000", "", "U+007F"]),
        ("\u00a0".encode(), ["", "U+00A0"]),
        ("\u0301".encode(), ["", "U+0301"]),  # an accent alone
        ("e\u0301".encode(), ["e\u0301"]),
        ("\U000e0001".encode(), ["", "U+E0001"]),
        (b"<script>", ["<script>"]),
        (b"x" * 100, ["x" * 48, "…"]),
        (b" " * 60, ["", *["␣", ""] * 48, "…"]),
    ],
)
def test_a_label_shows_what_a_token_is(raw, parts):
    assert label(raw) == parts


def test_likeliest_are_in_order_and_ties_by_id():
    logits = np.array([[1.0, 3, 3, 2, -5], [0, 0, 0, 0, 9]])
    best, p = likeliest(logits, 3)
    assert best[0].tolist() == [1, 2, 3] and best[1, 0] == 4
    assert np.allclose(p[0], (np.exp(logits[0]) / np.exp(logits[0]).sum())[[1, 2, 3]])
    assert likeliest(logits, 99)[0].shape == (2, 5)


GPTJ_6B = tiny_config(n_layer=28, n_head=16, d_model=4096, d_ff=16384, d_rotary=64, n_vocab=50400, n_ctx=2048)


def test_too_long_a_prompt_is_refused_before_anything_is_computed(monkeypatch, causal):
    most = most_tokens(GPTJ_6B)
    assert 128 <= most < 512 and html_bytes(GPTJ_6B, most) <= MOST_BYTES < html_bytes(GPTJ_6B, most + 1)
    assert html_bytes(GPTJ_6B, 64) < 8_000_000
    assert len(prompt_of(list(range(most)), GPTJ_6B, None)) == most
    with pytest.raises(GenerationError, match=f"got 2048 tokens, up to 5.* GB: what 28 x 16 heads .* at most {most} "):
        prompt_of([0] * 2048, GPTJ_6B, None)
    monkeypatch.setattr("refgpt.inspect.data.MOST_TOKENS", 8)
    monkeypatch.setattr(type(causal.engine), "logits", lambda *_: pytest.fail("computed"))
    with pytest.raises(GenerationError, match=r"got 9 tokens, up to .*; wanted at most 8 tokens"):
        build_report(causal, IDS)


def test_prompts_that_cannot_be_used(causal):
    for prompt, fault in [("a text", "tokenizer"), ([61], "does not exist"), ([], "empty"), ([0] * 65, "longer than")]:
        with pytest.raises(RefgptError, match=fault):
            build_report(causal, prompt)
    with pytest.raises(GenerationError, match="prefix_len"):
        build_report(causal, IDS, 10)


def test_numbers_that_are_none_are_refused(causal):
    params = dataclasses.replace(PARAMS, ln_b=np.full_like(PARAMS.ln_b, 3e38))
    engine = type(causal.engine)(params, CONFIG, threads=1)
    with pytest.raises(RefgptError, match="logits: the model computes NaN or infinity"):
        build_report(dataclasses.replace(causal, engine=engine), IDS)


def test_the_default_models_page_is_small():
    model = refgpt.load()
    ids = (model.tokenizer.encode(PROMPT) * 2)[:64]
    page = build_report(model, ids)
    assert len(ids) == 64 and len(page.encode()) < 2_000_000
    for n, prefix_len in ((64, 0), (64, 64), (8, 0)):
        n_bytes = len(build_report(model, ids[:n], prefix_len, verify=True).encode())
        assert n_bytes <= html_bytes(model.config, n) <= 4 * n_bytes
