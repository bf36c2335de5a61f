"""Names of parameters in other libraries: those with a counterpart here, and what to use in place of the others.

transformers' names are those of ``GenerationConfig`` and ``generate`` in release 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refgpt._common.errors import GenerationError

_DRAWS = "set temperature (0 takes the likeliest token), and top_k, top_p, min_p or typical_p"
_SPECULATE = "use speculate, how many tokens to draft at most"
_LOGPROBS = "use logprobs: the result has .logprobs and .top_logprobs"
_TRACE = "use model.trace"
_CACHE = "leave it out: keys and values are always kept; choose their dtype with refgpt.load(kv_dtype=...)"
_ENCODER = "leave it out: these models have no encoder"
_CONSTRAINT = "use constraint, with refgpt.json_schema, refgpt.regex or refgpt.grammar"
_NOT_HERE = "there is nothing like it here"
_PROCESSOR = f"{_NOT_HERE}; write it as a function, logits_processor"

#: transformers' names that are not fields of ``GenerationParams``, and what to use in their place.
TRANSFORMERS: Mapping[str, str] = {
    "assistant_confidence_threshold": _SPECULATE,
    "assistant_early_exit": _SPECULATE,
    "assistant_ensemble_weight": _SPECULATE,
    "assistant_lookbehind": _SPECULATE,
    "assistant_model": _SPECULATE,
    "assistant_tokenizer": _SPECULATE,
    "attention_mask": "leave it out: prompts are not padded; give a list of prompts of any lengths",
    "bos_token_id": "begin the prompt with it",
    "cache_config": _CACHE,
    "cache_implementation": _CACHE,
    "compile_config": "leave it out: nothing is compiled",
    "constraints": _CONSTRAINT,
    "continuous_batching_config": "use refgpt.Scheduler",
    "custom_generate": "write a loop over refgpt.Scheduler",
    "decoder_start_token_id": _ENCODER,
    "disable_compile": "leave it out: nothing is compiled",
    "diversity_penalty": f"{_NOT_HERE}; use num_return_sequences without beams for texts that differ",
    "do_sample": _DRAWS,
    "dola_layers": _NOT_HERE,
    "encoder_no_repeat_ngram_size": _ENCODER,
    "encoder_repetition_penalty": _ENCODER,
    "force_words_ids": _CONSTRAINT,
    "forced_bos_token_id": "end the prompt with it",
    "generation_config": "use params, a GenerationParams",
    "guidance_scale": _PROCESSOR,
    "input_ids": "give ids as prompt, a list",
    "inputs": "give a text or ids as prompt",
    "inputs_embeds": "give a text or ids as prompt",
    "is_assistant": _SPECULATE,
    "low_memory": "lower num_beams, or max_cache_bytes of a refgpt.Scheduler",
    "max_cache_len": _CACHE,
    "max_length": "use max_new_tokens, which does not count the prompt",
    "max_matching_ngram_size": _SPECULATE,
    "max_time": "use stopping_criteria, a function that looks at a clock",
    "min_length": "use min_new_tokens, which does not count the prompt",
    "negative_prompt_attention_mask": _PROCESSOR,
    "negative_prompt_ids": _PROCESSOR,
    "num_assistant_tokens": _SPECULATE,
    "num_assistant_tokens_schedule": _SPECULATE,
    "num_beam_groups": f"{_NOT_HERE}; use num_return_sequences without beams for texts that differ",
    "output_attentions": _TRACE,
    "output_hidden_states": f"{_TRACE}, or model.embed",
    "output_logits": "use model.logits, or logits_processor to see each row",
    "output_scores": _LOGPROBS,
    "pad_token_id": "leave it out: nothing is padded",
    "past_key_values": "use refgpt.generation.PrefixCache with a refgpt.Scheduler",
    "penalty_alpha": _NOT_HERE,
    "prefill_chunk_size": "leave it out: long prompts are read in pieces",
    "prefix_allowed_tokens_fn": f"{_CONSTRAINT}; or logits_processor, with -inf for what is not allowed",
    "prompt_lookup_num_tokens": _SPECULATE,
    "remove_invalid_values": "leave it out: logits that are NaN or infinite raise an error",
    "return_dict_in_generate": "leave it out: the result is always a Generation",
    "speculation_type": _SPECULATE,
    "stop_strings": "use stop; the text ends before it",
    "streamer": "use model.stream",
    "synced_gpus": "leave it out: there are no GPUs",
    "target_lookbehind": _SPECULATE,
    "token_healing": _NOT_HERE,
    "tokenizer": "leave it out: the model has its own; refgpt.load(tokenizer=...) takes another",
    "top_h": f"{_NOT_HERE}; use min_p or typical_p",
    "transformers_version": "leave it out",
    "use_cache": _CACHE,
    "use_model_defaults": "leave it out",
    "use_mtp": _SPECULATE,
    "watermarking_config": _PROCESSOR,
}

#: Names of other libraries and servers.
OTHERS: Mapping[str, str] = {
    "guided_grammar": _CONSTRAINT,
    "guided_json": _CONSTRAINT,
    "guided_regex": _CONSTRAINT,
    "json_schema": _CONSTRAINT,
    "logits_processors": "use logits_processor",
    "max_tokens": "use max_new_tokens",
    "min_tokens": "use min_new_tokens",
    "n_predict": "use max_new_tokens",
    "regex": _CONSTRAINT,
    "repeat_penalty": "use repetition_penalty",
    "response_format": _CONSTRAINT,
    "stop_sequences": "use stop",
    "stop_token_ids": "use eos_token_id",
    "temp": "use temperature",
    "typ_p": "use typical_p",
    "typical": "use typical_p",
}

#: Values of transformers' parameters that change nothing here. For every name, None is such a value.
ANYWAY: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (0, 0.0),
    "do_sample": (True,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "guidance_scale": (1, 1.0),
    "is_assistant": (False,),
    "low_memory": (False,),
    "num_beam_groups": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "output_scores": (False,),
    "penalty_alpha": (0, 0.0),
    "remove_invalid_values": (False,),
    "return_dict_in_generate": (True, False),
    "synced_gpus": (False,),
    "token_healing": (False,),
    "use_cache": (True,),
    "use_mtp": (False,),
}


def own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate other libraries' parameters to the names that they have here.

    transformers' ``do_sample=False`` becomes ``temperature=0``, and ``prompt_lookup_num_tokens`` becomes ``speculate``.
    Values that change nothing here, such as ``use_cache=True``, are left out.

    Raises
    ------
    GenerationError
        For another library's name without a counterpart here; the error says what to use in its place.
    """
    own = {}
    for name, value in given.items():
        if name not in TRANSFORMERS and name not in OTHERS:
            own[name] = value
        elif name == "do_sample" and value is False:
            continue  # set last, so that it overrides a temperature
        elif name == "do_sample" and value is True and given.get("num_beams", 1) != 1:
            raise GenerationError("beams do not draw tokens here", where=name, fix="leave it out, or num_beams")
        elif name == "prompt_lookup_num_tokens" and value is not None:
            own["speculate"] = value
        elif value is not None and not any(value is one or value == one for one in ANYWAY.get(name, ())):
            fix = {**OTHERS, **TRANSFORMERS}[name]
            raise GenerationError("there is no such parameter here", where=name, fix=fix)
    if given.get("do_sample") is False:
        own["temperature"] = 0.0
    return own
