"""Published figures, to stand beside those of a run.

The zero-shot figures are those of the table in GPT-J's README (https://github.com/kingoflolz/mesh-transformer-jax).
GPT-3's are OpenAI's own; the others were measured by EleutherAI with lm-evaluation-harness. The README does not say by
which accuracy HellaSwag and PIQA were counted: the figures are those of ``acc_norm`` (GPT-J's plain accuracy on
HellaSwag is about 50 %). Its LAMBADA is OpenAI's version of the data.

The ROUGE figures are those of MLPerf Inference's reference model, a GPT-J fine-tuned on the task, in float32, over the
whole validation set (https://github.com/mlcommons/inference, language/gpt-j). A submission must reach 99 % of each, and
in its high-accuracy variant 99.9 %.
"""

from __future__ import annotations

GPT_J, GPT_3, GPT_NEO = "GPT-J 6B", "GPT-3 6.7B", "GPT-Neo 2.7B"
MLPERF, MLPERF_TARGET = "MLPerf's reference", "99 % of it"

ROUGE = {"rouge1": 42.9865, "rouge2": 20.1235, "rougeL": 29.9881}

#: By task and metric: what was published for which model, as it is printed (accuracies and ROUGE in percent).
PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("lambada_openai", "perplexity"): {GPT_J: 3.99, GPT_3: 4.00, GPT_NEO: 5.63},
    ("lambada_openai", "acc"): {GPT_J: 69.7, GPT_3: 70.3, GPT_NEO: 62.2},
    ("winogrande", "acc"): {GPT_J: 65.3, GPT_3: 64.5, GPT_NEO: 56.5},
    ("hellaswag", "acc_norm"): {GPT_J: 66.1, GPT_3: 67.4, GPT_NEO: 55.8},
    ("piqa", "acc_norm"): {GPT_J: 76.5, GPT_3: 78.0, GPT_NEO: 73.0},
    **{
        ("cnn-dailymail", name): {MLPERF: value, MLPERF_TARGET: round(0.99 * value, 4)} for name, value in ROUGE.items()
    },
}
