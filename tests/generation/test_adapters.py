"""Several adapters on one loaded base: each request gives what it gives with its adapter alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt
from refgpt import GenerationError, RefgptError, Scheduler, training
from refgpt._common import memory
from refgpt.generation import GenerationParams, PrefixCache
from refgpt.generation.draft_pace import DraftPace
from refgpt.numbers.adapted import Adapted
from refgpt.runtime import RuntimeSession
from tests.helpers.adapters import written
from tests.helpers.training_models import CONFIG, model_in

STREAM = np.random.RandomState(3)
START = STREAM.randint(0, CONFIG.n_vocab, 34).tolist()  # a whole block of the prefix cache, and two more
PROMPTS = [START, [*START, 4, 7], [5, 6, 7, 5, 6, 7, 5, 6], [9]]
KINDS = {"oz": "wq wv", "law": "wo w_in w_head", "sea": "wk w_out"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The base, and its adapters by name."""
    folder = tmp_path_factory.mktemp("adapters")
    model_in(folder)
    return folder / "model", {
        name: written(folder / "model", folder / name, kinds, seed) for seed, (name, kinds) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def models(paths):
    """By name, the model with one adapter that is always applied; under "all", the one that has all of them."""
    base, adapters = paths
    found = {name: refgpt.load(base, adapter=path) for name, path in adapters.items()}
    return {None: refgpt.load(base), **found, "all": refgpt.load(base, adapters=adapters)}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"seed": 4},
        {"seed": 4, "n": 3},
        {"seed": 1, "best_of": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"temperature": 0, "speculate": 7, "logprobs": 2},
    ],
    ids=str,
)
def test_each_adapter_writes_as_it_does_alone(models, changes):
    texts = [models["all"].generate(PROMPTS, adapter=name, max_new_tokens=9, **changes) for name in (None, *KINDS)]
    for name, got in zip((None, *KINDS), texts, strict=True):
        assert got == models[name].generate(PROMPTS, max_new_tokens=9, **changes), name
        assert got == models["all"].generate(PROMPTS, GenerationParams(adapter=name, max_new_tokens=9, **changes))
    assert all(one != other for i, one in enumerate(texts) for other in texts[:i])


def test_everything_else_takes_an_adapter_too(models):
    model = models["all"]
    assert model.adapters.keys() == KINDS.keys()
    for name in (None, *KINDS):
        alone = models[name]
        assert (model.logits(START, adapter=name) == alone.logits(START)).all()
        assert (model.embed([START, [3]], adapter=name) == alone.embed([START, [3]])).all()
        scores = model.score(START, [[1, 2], [3]], adapter=name), alone.score(START, [[1, 2], [3]])
        assert all((got == want).all() for got, want in zip(*scores, strict=True))
        trace, want = model.trace(START, adapter=name), alone.trace(START)
        assert all((trace[key] == want[key]).all() for key in want)
        gradients = model.trace([1, 2, 3], gradients=True, adapter=name), alone.trace([1, 2, 3], gradients=True)
        assert all((gradients[0][key] == gradients[1][key]).all() for key in gradients[1])
        assert model.verify([1, 2, 3], adapter=name).first_broken is None
        if name is not None:
            assert (model.adapters[name].logits(START) == alone.logits(START)).all()


def test_the_specification_has_several_too(paths):
    base, adapters = paths
    model = refgpt.load(base, backend="numpy", dtype="f64", adapters=adapters)
    for name, path in adapters.items():
        alone = refgpt.load(base, backend="numpy", dtype="f64", adapter=path)
        want = alone.generate(PROMPTS[2], max_new_tokens=4, temperature=0)
        assert model.generate(PROMPTS[2], max_new_tokens=4, temperature=0, adapter=name) == want


def finished(scheduler, numbers=()):
    texts = {number: [] for number in numbers}
    while scheduler.busy:
        for event in scheduler.step():
            assert event.error is None
            if event.choice is not None:
                texts.setdefault(event.seq, []).append(event.choice.id)
    return texts


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_requests_that_come_and_go_at_any_time(models, data):
    """Mixtures of adapters, prompts that share their beginnings, few slots, the prefix cache on and off."""
    cache = PrefixCache(1 << 20) if data.draw(st.booleans()) else None
    scheduler = Scheduler(models["all"], data.draw(st.integers(1, 4)), prefix_cache=cache)
    wanted, texts, cancelled = {}, {}, set()
    for seed in range(data.draw(st.integers(2, 8))):
        name, prompt = data.draw(st.sampled_from([None, *KINDS])), data.draw(st.sampled_from(PROMPTS))
        number = scheduler.add(prompt, seed=seed, max_new_tokens=6, adapter=name)
        wanted[number] = models[name].generate(prompt, seed=seed, max_new_tokens=6).ids
        for _ in range(data.draw(st.integers(0, 4))):
            for event in scheduler.step():
                texts.setdefault(event.seq, []).append(event.choice.id)
        if not data.draw(st.integers(0, 4)):
            scheduler.cancel(number)
            cancelled.add(number)
    for number, ids in finished(scheduler).items():
        texts.setdefault(number, []).extend(ids)
    assert {number: texts[number] for number in wanted if number not in cancelled} == {
        number: ids for number, ids in wanted.items() if number not in cancelled
    }


def test_rows_of_several_adapters_share_a_pass(models, monkeypatch):
    passes, compute = [], RuntimeSession._compute

    def watched(session, batch, groups, program=None):
        passes.append(groups)
        return compute(session, batch, groups, program)

    monkeypatch.setattr(RuntimeSession, "_compute", watched)
    scheduler = Scheduler(models["all"])
    for name in ("oz", None, "law", "oz"):
        scheduler.add(PROMPTS[2], seed=1, max_new_tokens=4, adapter=name)
    finished(scheduler)
    assert ((None, 1), ("law", 1), ("oz", 2)) in passes and len(passes) == 2  # the prompts, and a recording
    passes.clear()
    models["all"].generate(PROMPTS, max_new_tokens=3, seed=1)
    assert {*passes} == {()}  # of the base alone, the pass is the base's own


def test_the_prefix_cache_keeps_adapters_apart(models):
    cache, model = PrefixCache(1 << 20), models["all"]
    for name in ("oz", "law", None, "oz", None):
        scheduler = Scheduler(model, prefix_cache=cache)
        number = scheduler.add(START, seed=2, max_new_tokens=4, adapter=name)
        scheduler.step()
        assert scheduler._running[0].n_read == len(START)
        found = finished(scheduler)
        assert found[number] == models[name].generate(START, seed=2, max_new_tokens=4).ids[-len(found[number]) :]
    assert len(cache._leaves(cache._root)) == 3


def test_blocks_of_all_adapters_share_the_memory(models):
    one = PrefixCache(1 << 20)
    scheduler = Scheduler(models["all"], prefix_cache=one)
    scheduler.add(START, seed=1, max_new_tokens=1)
    finished(scheduler)
    cache = PrefixCache(2 * one.n_bytes)
    for name in (None, "oz", "law", "sea"):
        scheduler = Scheduler(models["all"], prefix_cache=cache)
        scheduler.add(START, seed=1, max_new_tokens=1, adapter=name)
        finished(scheduler)
    assert cache.n_bytes == 2 * one.n_bytes


@pytest.mark.parametrize("speculate", [0, 7])
def test_drafts_change_no_text(models, monkeypatch, speculate):
    monkeypatch.setattr(DraftPace, "length", lambda self, room, n_texts=1: min(5, room))
    scheduler, wanted = Scheduler(models["all"], draft=models["law"], prefix_cache=PrefixCache(1 << 20)), {}
    for name in (None, *KINDS, "law"):
        for prompt in PROMPTS:
            settings = {"temperature": 0, "max_new_tokens": 12, "speculate": speculate}
            wanted[scheduler.add(prompt, adapter=name, **settings)] = models[name].generate(prompt, **settings).ids
    assert finished(scheduler) == wanted
    assert 0 < scheduler.n_accepted < scheduler.n_drafted


def test_a_file_of_a_prompt_is_of_one_adapter(models, tmp_path):
    model, path = models["all"], tmp_path / "prompt"
    changes = {"seed": 1, "max_new_tokens": 3, "prompt_cache": path}
    want = models["oz"].generate(START, seed=1, max_new_tokens=3)
    assert model.generate(START, adapter="oz", **changes) == want == model.generate(START, adapter="oz", **changes)
    assert models["oz"].generate(START, **changes) == want
    for other in (None, "law"):
        with pytest.raises(GenerationError, match="saved with another model"):
            model.generate(START, adapter=other, **changes)


def test_each_adapter_has_the_mask_that_it_was_trained_with(paths, tmp_path):
    base, adapters = paths
    both = {"seen": written(base, tmp_path / "seen", "wq wv", 5, mask="prefix"), "oz": adapters["oz"]}
    model = refgpt.load(base, adapters=both)
    assert model.mask == "causal" and [model.adapters[name].mask for name in both] == ["prefix", "causal"]
    alone = refgpt.load(base, adapter=both["seen"])
    scheduler, wanted = Scheduler(model, prefix_cache=PrefixCache(1 << 20)), {}
    for name, one in (("seen", alone), ("oz", model.adapters["oz"]), (None, refgpt.load(base)), ("seen", alone)):
        number = scheduler.add(START, seed=1, max_new_tokens=5, adapter=name)
        wanted[number] = one.generate(START, seed=1, max_new_tokens=5).ids
    assert finished(scheduler) == wanted
    assert (model.score(START, [[3, 4]], adapter="seen")[0] == alone.score(START, [[3, 4]])[0]).all()
    with pytest.raises(GenerationError, match="cannot share their beginnings"):
        model.generate(START, adapter="seen", prompt_cache=tmp_path / "file")
    causal = refgpt.load(base, mask="causal", adapters=both)
    assert causal.adapters["seen"].mask == "causal"


@pytest.mark.parametrize(
    "act",
    [
        lambda model: model.generate(START, adapter="Oz"),
        lambda model: model.score(START, [[1]], adapter="Oz"),
        lambda model: model.embed([START], adapter="Oz"),
        lambda model: model.trace(START, adapter="Oz"),
        lambda model: model.verify(START, adapter="Oz"),
        lambda model: model.logits(START, adapter="Oz"),
        lambda model: Scheduler(model).add(START, adapter="Oz"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(models, act):
    with pytest.raises(GenerationError, match=r"^adapter: .*'Oz'; wanted one of oz, law, sea, or None"):
        act(models["all"])
    with pytest.raises(GenerationError, match=r"^adapter: .*'Oz'; load the model with adapters="):
        act(models[None])


@pytest.mark.parametrize("given", [False, "", [], 0])
def test_what_names_no_adapters_is_refused(given, paths):
    with pytest.raises(RefgptError, match=r"^adapters: cannot be used; .* wanted a mapping"):
        refgpt.load(paths[0], adapters=given)


def test_memory_for_adapters_is_part_of_the_plan(paths, monkeypatch):
    base, adapters = paths
    model = refgpt.load(base, adapters=adapters)
    taken = model.engine.n_bytes
    for one in model.adapters.values():
        pairs = [leaf.panels for _, leaf in one.engine.kept().items() if isinstance(leaf, Adapted)]
        taken += sum(panels.nbytes for pair in pairs for panels in pair)
    monkeypatch.setattr(memory, "obtainable_memory", lambda: taken)
    refgpt.load(base, adapters=adapters)
    monkeypatch.setattr(memory, "obtainable_memory", lambda: taken - 1)
    with pytest.raises(RefgptError, match="the weights take more memory than this process can have"):
        refgpt.load(base, adapters=adapters)
    monkeypatch.setattr(memory, "obtainable_memory", lambda: 100)
    with pytest.raises(RefgptError, match="adapter oz: adapters take more memory than this process can have"):
        refgpt.load(base, adapters=adapters)


def test_what_cannot_be_named_or_loaded_is_refused(paths, tmp_path):
    base, adapters = paths
    model = refgpt.load(base)
    for unusable, fault in (
        ({"": adapters["oz"]}, "cannot be a name"),
        ({"a=b": adapters["oz"]}, "cannot be a name"),
        ({"a\nb": adapters["oz"]}, "cannot be a name"),
        ({3: adapters["oz"]}, "cannot be a name"),
        ([adapters["oz"]], "wanted a mapping from names"),
        ({"oz": tmp_path / "nowhere"}, "adapter oz.*there is no such file"),
    ):
        for load in (lambda a: refgpt.load(base, adapters=a), model.with_adapters):
            with pytest.raises(RefgptError, match=fault):
                load(unusable)
    with pytest.raises(RefgptError, match="one adapter is always applied"):
        refgpt.load(base, adapter=adapters["oz"], adapters=adapters)
    with pytest.raises(RefgptError, match="an adapter already"):
        refgpt.load(base, adapter=adapters["oz"]).with_adapters(adapters)
    with pytest.raises(GenerationError, match="adapter: cannot be used; got 3"):
        model.generate(START, adapter=3)


def test_a_model_with_named_adapters_is_not_trained(models):
    with pytest.raises(RefgptError, match="its weights cannot be changed"):
        training.new_adapter(models["all"])
    with pytest.raises(RefgptError, match="its weights cannot be changed"):
        training.Trainer(models["all"])


def test_adapters_can_be_added_to_others(paths):
    base, adapters = paths
    one = refgpt.load(base, adapters={"oz": adapters["oz"]})
    two = one.with_adapters({"law": adapters["law"]})
    assert [*one.adapters] == ["oz"] and [*two.adapters] == [*two.engine.adapters] == ["oz", "law"]
    assert two.adapters["oz"] is one.adapters["oz"]


def test_the_base_is_loaded_once(models):
    model = models["all"]
    for other in model.adapters.values():
        for (_, leaf), (_, own) in zip(other.engine.kept().items(), model.engine.kept().items(), strict=True):
            assert (leaf.base if isinstance(leaf, Adapted) else leaf) is own
