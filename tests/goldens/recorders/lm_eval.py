"""Record what lm-evaluation-harness's Hugging Face backend gives for small models, and for the handmade data sets.

Recorded with lm-eval 0.4.13, transformers 5.24 and torch 2.13. The tokenizer is trained on the handmade texts.
``results.json`` has, for each model, log-likelihoods (with ``is_greedy``), rolling log-likelihoods and texts, and for
each task the requests that lm-eval makes, the model's answers and the metrics.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 - first: later it would not register the built-in models
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.goldens.recorders.activations import torch_model
from tests.helpers.evaluation_models import DATA, GOLDENS, MODELS, N_TOKENS, TOKENIZER, params_of
from tests.helpers.lm_eval_tasks import handmade_tasks

LONG = "The cat sat by the mill and looked at the water. " * 12
PAIRS = [
    ("The mill", " stood by the river"),
    ("The mill ", "stood by the river"),  # white space before the seam goes to the continuation
    ("The mill\n\n", "stood"),
    ("The mill \t", " stood"),
    ("The mi", "ll stood"),  # a token may span the seam
    ("", "The mill stood"),
    ("", "<|endoftext|>The mill"),  # begins with the token that stands for an empty context
    ("", " "),
    ("<|endoftext|>", "The mill"),
    ("Über die Brücke", " ging das Mädchen, 你好 🙂"),
    ("你", "好"),
    ("🙂", "🙂🙂"),
    ("é", "\u0301"),
    (LONG, " and then it rained"),
    (LONG[:100], " and"),
    ("He", " said: “I'll wait.”"),
    ("x" * 200, "y" * 20),
    ("Question: Who?\nAnswer:", " the giant"),
    ("Question: Who?\nAnswer:", " the goose"),
    ("Question: Who?\nAnswer:", " nobody"),
]
ROLLING = ["The mill.", "Ü", LONG, LONG[:333], " \n\n", "你好 " * 30, "<|endoftext|>The end.<|endoftext|>"]
GENERATE: list[tuple[str, dict[str, Any]]] = [
    ("The mill", {"until": ["\n"], "max_gen_toks": 12}),
    ("The cat sat", {"until": [" the", "."], "max_gen_toks": 20}),
    (LONG, {"until": ["\n\n"], "max_gen_toks": 9}),  # loses its beginning
    ("Das Mädchen", {"max_gen_toks": 5, "do_sample": False}),
    ("Once", {"until": "e", "max_new_tokens": 15, "temperature": 0.0}),
]


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = trained_tokenizer()
    found: dict[str, Any] = {}
    for name, (config, *_) in MODELS.items():
        model = torch_model(config, params_of(name)).float()
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=config.n_ctx)
        pairs = PAIRS + likely_pairs(model, tokenizer, config.n_ctx)
        pairs = [pair for pair in pairs if len(lm.tok_encode(pair[1])) < config.n_ctx]
        texts = [(context, given) for context, given in GENERATE]
        found[name] = {
            "loglikelihood": rows(pairs, lm.loglikelihood(asked("loglikelihood", pairs))),
            "rolling": rows(ROLLING, lm.loglikelihood_rolling(asked("loglikelihood_rolling", [(t,) for t in ROLLING]))),
            "generate": rows(texts, lm.generate_until(asked("generate_until", texts))),
        }
        if config.n_ctx > 300:
            found["tasks"] = of_tasks(lm)
    GOLDENS.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, written as vocab.json and merges.txt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.jsonl"))], trainer)
    assert bpe.get_vocab_size() == N_TOKENS
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(TOKENIZER))
    (TOKENIZER / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def likely_pairs(model: Any, tokenizer: Any, n_ctx: int) -> list[tuple[str, str]]:
    """Contexts with the likeliest next token, so that some continuations are greedy; also at the end of a context."""
    found = []
    for context in ("The mill", "The cat sat by", "Das Mädchen", LONG):
        ids = tokenizer.encode(context)[-n_ctx:]
        with torch.no_grad():
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        found.append((context, tokenizer.decode([best]) if best < N_TOKENS else " the"))
    return found


def asked(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, tuple(one), i) for i, one in enumerate(arguments)]


def rows(arguments: list[Any], results: list[Any]) -> list[Any]:
    return [[one, result] for one, result in zip(arguments, results, strict=True)]


def of_tasks(lm: HFLM) -> dict[str, Any]:
    """Each task's requests, answers and metrics."""
    with tempfile.TemporaryDirectory() as directory:
        manager, names = handmade_tasks(Path(directory))
        out = simple_evaluate(
            model=lm, tasks=list(names.values()), task_manager=manager, log_samples=True, bootstrap_iters=0
        )
    found = {}
    for ours, theirs in names.items():
        metrics = {
            key.partition(",")[0]: value for key, value in out["results"][theirs].items() if "_stderr" not in key
        }
        samples = sorted(out["samples"][theirs], key=lambda sample: sample["doc_id"])
        found[ours] = {
            "metrics": {key: value for key, value in metrics.items() if isinstance(value, float)},
            "items": [{"requests": sample["arguments"], "answers": sample["resps"]} for sample in samples],
        }
    return found
