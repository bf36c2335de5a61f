"""Record what transformers' GPT2TokenizerFast makes of some texts.

``python record_gpt2.py DIRECTORY`` with a directory that holds GPT-2's vocabulary: vocab.json and merges.txt.
"""

import json
import random
import sys
from pathlib import Path

from transformers import GPT2TokenizerFast

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


def main() -> None:
    tokenizer = GPT2TokenizerFast.from_pretrained(sys.argv[1])
    rng = random.Random(0)
    texts = ["hello\n\nhello", "", " ", "def f(x):\n    return x ** 2\n"]
    texts += ["".join(rng.choices(PROSE + ODD, k=rng.randrange(1, 12))) for _ in range(60)]
    lines = [json.dumps([text, tokenizer.encode(text, add_special_tokens=False)]) for text in texts]
    Path(__file__).with_name("gpt2.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
