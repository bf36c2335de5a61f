"""Record the ids that transformers' GPT2TokenizerFast gives for some texts."""

import json
import random

from transformers import GPT2TokenizerFast

from tests.goldens import HERE

PROSE = ["hello", " don't", " I'LL", " unbelievable", " 2048", "...", "\n", "\n\n", "  ", "\t", " the", "<|endoftext|>"]
ODD = [
    "é",
    "ß",
    "你好",
    " 日本語",
    "한",
    "🙂",
    "👩‍👧",
    "\u0301",
    "\u200d",
    "\u00a0",
    "\u3000",
    "\x00",
    "\x7f",
    "\u2028",
    "\ufeff",
]


def main(directory: str) -> None:
    """``directory`` holds GPT-2's vocabulary: vocab.json and merges.txt."""
    tokenizer = GPT2TokenizerFast.from_pretrained(directory)
    rng = random.Random(0)
    texts = ["hello\n\nhello", "", " ", "def f(x):\n    return x ** 2\n"]
    texts += ["".join(rng.choices(PROSE + ODD, k=rng.randrange(1, 12))) for _ in range(60)]
    lines = [json.dumps([text, tokenizer.encode(text, add_special_tokens=False)]) for text in texts]
    (HERE / "gpt2_tokens.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
