"""What public functions make of arguments of the wrong kind: one clear error, or what the value stands for."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import refgpt
from refgpt import ModelConfig, evaluation, kernels, plotting, spec, tracing
from refgpt._common.arguments import collected, flag, whole_number
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.evaluation import RaftSettings, Template
from refgpt.evaluation.speed import measure
from refgpt.generation.params import GenerationParams
from refgpt.generation.stopping import StopMatcher
from refgpt.kernels.threads import check_threads
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(bos_id=0, eos_id=0)
PARAMS = random_params(CONFIG, seed=4)
ENGINES = {"spec": SpecEngine(PARAMS, CONFIG), "runtime": Runtime(PARAMS, CONFIG)}
ENGINE = ENGINES["runtime"]
IDS = [1, 2, 3, 2]
TRACE = tracing.record(ENGINE, IDS, names="blocks.0.*")
PATTERN = TRACE["blocks.0.pattern"]
GOLD = np.array([0, 1, 1])
ROWS = np.ones((2, 32), np.float32)


class Index:
    """A whole number of another library."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


NUMBERS = {"object": Index, "array": np.array, "int8": np.int8, "uint64": np.uint64}
MANY_DIGITS = 10**5000


# ---- things that stand for whole numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_whole_numbers_come_out_as_pythons_own(make) -> None:
    assert type(whole_number("n", make(100), 0, None, RefgptError)) is int
    params = GenerationParams(
        max_new_tokens=make(100), top_k=make(100), seed=make(100), logprobs=make(3), speculate=make(2)
    )
    for name in ("max_new_tokens", "top_k", "seed", "logprobs", "speculate"):
        assert type(getattr(params, name)) is int
    shape = ModelConfig(
        n_layer=make(100),
        n_head=make(4),
        d_model=make(64),
        d_ff=make(64),
        d_rotary=make(4),
        n_vocab=make(100),
        n_ctx=make(100),
        bos_id=make(99),
        eos_id=make(99),
    )
    assert shape == ModelConfig(100, 4, 64, 64, 4, 100, 100, 1e-5, 99, 99)
    assert shape.n_params == ModelConfig(100, 4, 64, 64, 4, 100, 100, 1e-5, 99, 99).n_params  # int8 would overflow
    settings = RaftSettings(n_shots=make(100), n_trials=make(100), n_rows=make(100))
    assert [type(value) for value in (settings.n_shots, settings.n_trials, settings.n_rows)] == [int] * 3


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_what_stands_for_a_number_gives_what_the_number_gives(engine, make) -> None:
    assert (engine.logits(IDS, make(2)) == engine.logits(IDS, 2)).all()
    session, want = engine.session(1, 8), engine.session(1, 8)
    assert (session.prefill(0, IDS, make(2)) == want.prefill(0, IDS, 2)).all()
    session.truncate(0, make(3)), want.truncate(0, 3)
    assert (session.extend(0, [5]) == want.extend(0, [5])).all()
    assert tracing.verify(engine, PARAMS, IDS, make(2)) == tracing.verify(engine, PARAMS, IDS, 2)
    got = tracing.logit_attribution(engine, IDS, make(5), make(6), position=make(1))
    assert (got.token, got.against) == (5, 6) and type(got.against) is int
    assert got.logit == tracing.logit_attribution(engine, IDS, 5, 6, position=1).logit
    traced = tracing.causal_trace(engine, IDS, [1, 2, 3, 4], make(5), make(6), window=make(2), positions=make(3))
    assert (
        traced.restored == tracing.causal_trace(engine, IDS, [1, 2, 3, 4], 5, 6, window=2, positions=3).restored
    ).all()
    assert list(tracing.zero_heads(make(1), 0)) == ["blocks.1.z"]
    assert (tracing.repeated_ids(CONFIG, make(5), make(3)) == tracing.repeated_ids(CONFIG, 5, 3)).all()
    assert tracing.trace_bytes(CONFIG, make(100), "embed") == {"embed": 100 * CONFIG.d_model * 4}
    sample = evaluation.mean_over_trials(evaluation.accuracy, GOLD, [GOLD])
    assert evaluation.estimate(sample, seed=make(1), n_resamples=make(20)) == evaluation.estimate(
        sample, n_resamples=20
    )


# ---- what is refused -------------------------------------------------------------------------------------------------


WRONG = {
    "names of a number": lambda: tracing.record(ENGINE, IDS, names=5),
    "names of a mapping": lambda: tracing.record(ENGINE, IDS, names={"embed": 1}),
    "names with None": lambda: tracing.record(ENGINE, IDS, names=[None]),
    "names of bytes": lambda: tracing.record(ENGINE, IDS, names=b"embed"),
    "a pattern of a megabyte": lambda: tracing.record(ENGINE, IDS, names="[a-z]" * 200_000),
    "a thousand names that are none": lambda: tracing.record(ENGINE, IDS, names=[f"x{i}" for i in range(1000)]),
    "patch of a number": lambda: tracing.record(ENGINE, IDS, patch=5),
    "patch of an array without axes": lambda: tracing.patch(ENGINE, IDS, np.array(1)),
    "patch of a text": lambda: tracing.patch(ENGINE, IDS, "embed"),
    "a replacement of text": lambda: tracing.patch(ENGINE, IDS, {"embed": tracing.Replacement("x")}),
    "a ragged replacement": lambda: tracing.patch(ENGINE, IDS, {"embed": tracing.Replacement([[1], [1, 2]])}),
    "patch_from no trace": lambda: tracing.patch_from(5, "embed"),
    "patch_from a trace of numbers": lambda: tracing.patch_from({"embed": 0}, "embed"),
    "mean of numbers": lambda: tracing.mean_ablation({"blocks.0.z": 0}),
    "mean of a number": lambda: tracing.mean_ablation(5),
    "mean of numbers in a list": lambda: tracing.mean_ablation([5]),
    "zero_ablation of a number": lambda: tracing.zero_ablation(5),
    "zero_ablation of numbers": lambda: tracing.zero_ablation([5]),
    "zero_heads of no layer": lambda: tracing.zero_heads("*", 0),
    "zero_neurons of a negative layer": lambda: tracing.zero_neurons(-1, 0),
    "no model": lambda: tracing.record(5, IDS),
    "a config instead of a model": lambda: tracing.head_scores(CONFIG, IDS),
    "names that trace_bytes does not know": lambda: tracing.trace_bytes(CONFIG, 3, ["nope"]),
    "trace_bytes of no tokens": lambda: tracing.trace_bytes(CONFIG, -3, ["embed"]),
    "trace_bytes of no config": lambda: tracing.trace_bytes(5, 3, ["embed"]),
    "seed below 0": lambda: tracing.repeated_ids(CONFIG, 5, seed=-1),
    "seed of a text": lambda: tracing.repeated_ids(CONFIG, 5, seed="1"),
    "entropy of a number": lambda: tracing.attention_entropy(5),
    "entropy of whole numbers": lambda: tracing.attention_entropy(np.ones((1, 2, 2), int)),
    "score of a single row": lambda: tracing.previous_token_score(PATTERN[0, 0]),
    "score of some queries": lambda: tracing.previous_token_score(PATTERN[:, 1:]),
    "ids of another length": lambda: tracing.duplicate_token_score(PATTERN, [1, 2]),
    "ids of text": lambda: tracing.induction_score(PATTERN, "abcd"),
    "progress of an array": lambda: tracing.causal_trace(ENGINE, IDS, [1, 2, 3, 4], progress=np.zeros(2)),
    "look of a number": lambda: tracing.visit(ENGINE, IDS, "embed", 5),
    "a layer of many digits": lambda: tracing.zero_heads(MANY_DIGITS, 0),
    "weights of a number": lambda: tracing.verify(ENGINE, 5, IDS),
    "on_tap of a number": lambda: tracing.verify(ENGINE, PARAMS, IDS, on_tap=5),
    "memory of no engine": lambda: tracing.verify_bytes(5, 3),
    "neurons of no model": lambda: tracing.top_activations(5, ["text"], 0),
    "neurons on an array without axes": lambda: tracing.top_activations(ENGINE, np.array("text"), 0),
    "no resamples": lambda: evaluation.estimate((len, 2), n_resamples=0),
    "resampling from a negative seed": lambda: evaluation.estimate((len, 2), seed=-1),
    "an estimate from nothing": lambda: evaluation.estimate(),
    "an estimate from no rows": lambda: evaluation.estimate((len, 0)),
    "an estimate from a number": lambda: evaluation.estimate(5),
    "macro-F1 of nothing": lambda: evaluation.macro_f1(GOLD[:0], GOLD[:0]),
    "macro-F1 of unequal lengths": lambda: evaluation.macro_f1(GOLD, GOLD[:2]),
    "macro-F1 of fractions": lambda: evaluation.macro_f1(GOLD + 0.5, GOLD),
    "gold below 0": lambda: evaluation.macro_f1(GOLD - 1, GOLD),
    "accuracy of nothing": lambda: evaluation.accuracy(GOLD[:0], GOLD[:0]),
    "accuracy of unequal lengths": lambda: evaluation.accuracy(GOLD, GOLD[:1]),
    "no trials": lambda: evaluation.mean_over_trials(evaluation.accuracy, GOLD, []),
    "trials of a number": lambda: evaluation.mean_over_trials(evaluation.accuracy, GOLD, 5),
    "no metric": lambda: evaluation.mean_over_trials(None, GOLD, [GOLD]),
    "means of nothing": lambda: evaluation.mean_results([]),
    "means of numbers": lambda: evaluation.mean_results([5]),
    "tasks of a text": lambda: evaluation.read_raft(".", "overruling"),
    "tasks of a list of lists": lambda: evaluation.read_raft(".", [["overruling"]]),
    "examples of None": lambda: evaluation.Classifier(None, ["x", "y"], examples=None),
    "a template of numbers": lambda: Template("", 5, ""),
    "labels of a set": lambda: evaluation.Classifier(None, {"x", "y"}),
    "prompts of a number": lambda: measure(ENGINE, prompts=5),
    "a bar of an array": lambda: plotting.head_map(np.ones((2, 2)), bar=np.ones(2)),
    "a sign of a text": lambda: plotting.head_map(np.ones((2, 2)), signed="yes"),
    "a label of a number": lambda: plotting.head_map(np.ones((2, 2)), label=5),
    "scores of many digits": lambda: plotting.head_map([[MANY_DIGITS]]),
    "a largest value of a text": lambda: plotting.attention_map(PATTERN[0], vmax="1"),
    "a largest value of NaN": lambda: plotting.attention_map(PATTERN[0], vmax=float("nan")),
    "ragged patterns": lambda: plotting.attention_grid([[1], [1, 2]]),
    "patterns by numbers": lambda: plotting.attention_grid({1: PATTERN}),
    "a ragged lens": lambda: plotting.lens_map([[1], [1, 2]]),
    "a tokenizer of a number": lambda: plotting.token_labels(5, [1]),
    "ids of a fraction": lambda: plotting.token_labels(refgpt.load().tokenizer, [1.5]),
    "targets of lists": lambda: plotting.lens_map(np.ones((2, 1, 3)), targets=[[1, 2]]),
    "parts of a number": lambda: plotting.error_lines(tracing.compare(ENGINE, ENGINE, IDS), parts=5),
    "labels of a number": lambda: plotting.token_lines(np.ones(3), 5),
    "verify of an array": lambda: refgpt.load(verify=np.zeros(2)),
    "copy of a number": lambda: refgpt.load(copy=1),
    "copy of an array": lambda: refgpt.load(copy=np.zeros(2)),
    "progress of a number for load": lambda: refgpt.load(progress=5),
    "no path": lambda: refgpt.load(""),
    "a revision without letters": lambda: refgpt.load("nobody/nothing", revision=""),
    "a revision of a number": lambda: refgpt.load("nobody/nothing", revision=5),
    "no tasks": lambda: evaluation.read_raft(".", []),
    "resamples without end": lambda: evaluation.estimate((len, 2), n_resamples=2**70),
    "activations of many digits": lambda: tracing.top_activations(refgpt.load(), ["a"], 0, k=MANY_DIGITS),
    "a colour map of a number": lambda: plotting.head_map(np.ones((2, 2)), cmap=0),
    "a colour map of an array": lambda: plotting.head_map(np.ones((2, 2)), cmap=np.zeros(2)),
    "a colour map of no name": lambda: plotting.attention_map(PATTERN[0], cmap=""),
    "a label of nothing": lambda: plotting.readable(None),
    "a label of no letters": lambda: plotting.readable("a", None),
    "a dtype of a number": lambda: spec.forward(PARAMS, CONFIG, IDS, dtype=5),
    "a dtype of whole numbers": lambda: spec.forward(PARAMS, CONFIG, IDS, dtype=np.int32),
    "a dtype of a surrogate": lambda: spec.forward(PARAMS, CONFIG, IDS, dtype="\ud800"),
    "a tap of a number": lambda: spec.forward(PARAMS, CONFIG, IDS, tap=5),
    "axes of no activation": lambda: spec.tap_axes("nope"),
    "axes of a number": lambda: spec.tap_axes(5),
    "no op": lambda: kernels.active("nope"),
    "an op of a list": lambda: kernels.active(["gelu"]),
    "a kernel of many digits": lambda: kernels.gelu(ROWS, kernel=MANY_DIGITS),
    "an epsilon of many digits": lambda: kernels.layer_norm(ROWS, ROWS[0], ROWS[0], MANY_DIGITS),
    "a ragged weight": lambda: kernels.layer_norm(ROWS, [[1], [1, 2]], ROWS[0], 1e-5),
    "a ragged summand": lambda: kernels.residual(ROWS, [[1], [1, 2]], ROWS),
    "a kind of a list": lambda: kernels.quantise(ROWS, ["q8"]),
    "panels of a number": lambda: kernels.store(ROWS, 5),
    "room of a text": lambda: kernels.kv_shapes(1, "8", 5),
    "scratch of fractions": lambda: kernels.scratch_bytes(1.5, 8),
    "slots of a list": lambda: kernels.query_tiles([0, 0]),
    "slots of texts": lambda: kernels.query_tiles(np.array(["a"])),
    "ids of texts": lambda: kernels.embedding(ROWS, np.array(["a"])),
    "ids of objects": lambda: kernels.embedding(ROWS, np.array([None, 1])),
    "a head of a text": lambda: refgpt.load().tokenizer.fit("5"),
    "ignore_eos of a number": lambda: GenerationParams(ignore_eos=1),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_refused_in_a_few_words(call) -> None:
    with pytest.raises(RefgptError) as error:
        call()
    assert len(str(error.value)) < 5000


@pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="this Python prints numbers of any size")
@pytest.mark.parametrize(
    "call",
    [
        lambda: ModelConfig(n_layer=MANY_DIGITS),
        lambda: ModelConfig(ln_eps=MANY_DIGITS),
        lambda: GenerationParams.of(MANY_DIGITS, {}),
        lambda: refgpt.load(revision=MANY_DIGITS),
        lambda: GenerationParams(speculate=MANY_DIGITS),
        lambda: tracing.record(ENGINE, IDS, positions=MANY_DIGITS),
        lambda: tracing.record(ENGINE, IDS, positions=[MANY_DIGITS]),
        lambda: tracing.logit_attribution(ENGINE, IDS, token=-MANY_DIGITS),
        lambda: ENGINE.logits(IDS, MANY_DIGITS),
        lambda: check_threads(MANY_DIGITS),
        lambda: GenerationParams(stop=[MANY_DIGITS]),
    ],
)
def test_a_number_too_large_to_be_printed_is_refused_all_the_same(call) -> None:
    with pytest.raises(RefgptError, match="about 5,000 digits"):
        call()


@pytest.mark.parametrize("digits", ["9" * 5000, "9" * 21, "1025", "0"])
def test_a_number_of_threads_beyond_all_measure(monkeypatch, digits) -> None:
    monkeypatch.setenv("REFGPT_THREADS", digits)
    with pytest.raises(RefgptError, match="REFGPT_THREADS: cannot be used") as error:
        check_threads(None)
    assert len(str(error.value)) < 300


def test_the_gates() -> None:
    assert collected("x", iter("ab"), "", RefgptError) == ["a", "b"]
    assert collected("x", np.arange(2), "", RefgptError) == [0, 1]
    assert flag("x", np.True_, RefgptError) is True
    for value in ("ab", b"ab", {"a": 1}, 5, None, np.array(0)):
        with pytest.raises(GenerationError, match="x: cannot be used"):
            collected("x", value, "", GenerationError)
    for value in (1, None, np.zeros(2), "yes"):
        with pytest.raises(GenerationError, match="x: cannot be used"):
            flag("x", value, GenerationError)


# ---- work on text ----------------------------------------------------------------------------------------------------


class Counted(dict):
    """A dict that counts how often it is asked."""

    n_asked = 0

    def get(self, key, default=None):
        self.n_asked += 1
        return super().get(key, default)


LONG = "the cat " * 1250
STOPS = {
    "one of 10,000 characters": [LONG],
    "a thousand": [f"the cat {i} and a little dog were sitting on the mat" for i in range(1000)],
    "all the ends of one": ["a" * n + "b" for n in range(1, 200)],
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("text", [LONG[:-1] + "x", "the cat 7 and " * 500, "a" * 5000], ids=["cat", "and", "a"])
def test_stop_strings_take_work_by_the_length_of_the_text(stops, text) -> None:
    """Whatever their number and length: at most two look-ups a character, of which one goes back on an earlier one."""
    matcher = StopMatcher(stops)
    counted = matcher._next = Counted(matcher._next)
    state = 0
    for character in text:
        state = matcher.step(state, character)
        assert not matcher.matches[state]
    assert len(text) <= counted.n_asked <= 2 * len(text)


def test_a_thousand_labels_are_looked_at_once_each() -> None:
    class Label(str):
        n_compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Label.n_compared += 1
            return str.__eq__(self, other)

    labels = [Label(f"label {i}") for i in range(1000)]
    evaluation.Classifier(None, labels, "{text}")
    assert Label.n_compared < 20_000  # each with each would be a million
