"""Generating, guessing, scoring and classifying work on every variant of every family, in both engines."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.generation.loop import generate
from refgpt.generation.params import GenerationParams
from refgpt.generation.sampling import log_softmax
from refgpt.generation.scoring import score
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

each_variant = pytest.mark.parametrize("variant", VARIANTS)
COPYING = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
PROMPTS = [COPYING, [9], list(range(2, 30))]


@cache
def model_of(variant, kind="runtime", mask="causal"):
    config = VARIANTS[variant]
    params = random_params(config, 5, "f16")
    engine = Runtime(params, config, threads=2) if kind == "runtime" else SpecEngine(params, config)
    return SimpleNamespace(engine=engine, tokenizer=None, mask=mask)


@each_variant
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1, "seed": 2}])
def test_texts_are_the_same_alone_together_and_guessed(variant, settings):
    model = model_of(variant)
    params = [GenerationParams(max_new_tokens=30, speculate=n, **settings) for n in (0, 7)]
    together = generate(model, PROMPTS, params[0])
    for prompt, text in zip(PROMPTS[:1], together, strict=False):  # the first draws as it does alone
        assert [text] == generate(model, [prompt], params[0]) == generate(model, [prompt], params[1])
    if not settings["temperature"]:
        assert together == [generate(model, [prompt], params[1])[0] for prompt in PROMPTS]


@each_variant
def test_both_engines_write_the_same_text(variant):
    params = GenerationParams(max_new_tokens=12, temperature=0)
    ours, theirs = (generate(model_of(variant, kind), [COPYING], params)[0] for kind in ("runtime", "spec"))
    assert ours.ids == theirs.ids


@each_variant
def test_scores_are_what_the_whole_text_says(variant):
    model, prompt = model_of(variant), PROMPTS[2]
    for one, ids in zip(score(model, prompt, [[4, 7], [11]]), [[4, 7], [11]], strict=True):
        rows = model.engine.logits([*prompt, *ids])[len(prompt) - 1 : -1]
        assert np.array_equal(one, log_softmax(rows)[np.arange(len(ids)), ids])


def test_a_prompt_that_sees_itself_is_refused_where_layers_are_local():
    for kind in ("runtime", "spec"):
        with pytest.raises(GenerationError, match="local attention"):
            generate(model_of("gpt_neo", kind, "prefix"), [COPYING], GenerationParams(max_new_tokens=2))
        with pytest.raises(GenerationError, match="local attention"):
            score(model_of("gpt_neo", kind, "prefix"), COPYING, [[4, 7]])
