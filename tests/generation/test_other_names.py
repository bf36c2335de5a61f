"""Parameters under the names that they have in other libraries."""

from __future__ import annotations

from dataclasses import fields

import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.generation.other_names import ANYWAY, OTHERS, TRANSFORMERS
from refgpt.generation.params import GenerationParams

#: What ``GenerationConfig`` of transformers 5.24 has, and the parameters of ``generate``.
GENERATION_CONFIG = """
max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams use_mtp
use_cache cache_implementation cache_config max_cache_len temperature top_k top_p min_p top_h typical_p epsilon_cutoff
eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids
renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens sequence_bias token_healing guidance_scale watermarking_config
num_return_sequences output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
pad_token_id bos_token_id eos_token_id encoder_no_repeat_ngram_size decoder_start_token_id is_assistant
num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
speculation_type compile_config disable_compile continuous_batching_config low_memory penalty_alpha dola_layers
diversity_penalty num_beam_groups constraints force_words_ids prefill_chunk_size transformers_version
"""
GENERATE = """
inputs generation_config logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model
streamer negative_prompt_ids negative_prompt_attention_mask custom_generate input_ids attention_mask inputs_embeds
past_key_values tokenizer assistant_tokenizer use_model_defaults
"""
OWN = {field.name for field in fields(GenerationParams)}


def test_every_name_of_transformers_is_a_parameter_or_says_what_to_use():
    names = {*GENERATION_CONFIG.split(), *GENERATE.split()}
    assert names - OWN == TRANSFORMERS.keys()
    assert not OWN & (TRANSFORMERS.keys() | OTHERS.keys()) and not TRANSFORMERS.keys() & OTHERS.keys()
    assert ANYWAY.keys() <= TRANSFORMERS.keys()


@pytest.mark.parametrize("name", sorted({**TRANSFORMERS, **OTHERS}))
def test_what_cannot_be_meant_here_is_an_error_that_says_what_to_use(name):
    if name == "prompt_lookup_num_tokens":
        return
    with pytest.raises(GenerationError, match=f"^{name}: there is no such parameter here; ") as caught:
        GenerationParams.of(None, {name: "something"})
    assert caught.value.fix == {**TRANSFORMERS, **OTHERS}[name]


def test_what_is_done_anyway_may_be_asked_for():
    for name, values in ANYWAY.items():
        for value in (None, *values):
            assert GenerationParams.of(None, {name: value}) == GenerationParams()


def test_names_that_mean_the_same():
    model = refgpt.load()
    greedy = model.generate("Once", max_new_tokens=5, temperature=0)
    asked = {"max_new_tokens": 5, "temperature": 0.7, "use_cache": True, "output_scores": False}
    assert model.generate("Once", do_sample=False, prompt_lookup_num_tokens=3, **asked) == greedy
    drawn = model.generate("Once", seed=1, **asked)
    assert model.generate("Once", do_sample=True, seed=1, **asked) == drawn
    assert GenerationParams.of(None, {"prompt_lookup_num_tokens": 3}).speculate == 3
    with pytest.raises(GenerationError, match=r"^do_sample: beams do not draw tokens here"):
        model.generate("Once", do_sample=True, num_beams=2)
    assert model.generate("Once", do_sample=False, num_beams=2, max_new_tokens=5).score < 0


def test_a_mistyped_name_is_recognised():
    with pytest.raises(GenerationError, match=r"^temprature: there is no such parameter; did you mean temperature\?"):
        refgpt.load().generate("Once", temprature=1)
