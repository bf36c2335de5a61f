"""Record ids and character offsets that transformers' fast tokenizers give for some texts."""

from __future__ import annotations

import json
import random
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from tests.goldens import HERE
from tests.helpers.small_tokenizers import SENTENCES, byte_level_bpe

PARTS = [
    "toad",
    " garden",
    "  ",
    "\n",
    " the mill",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "👩\u200d👧",
    "<|endoftext|>",
    " <mark> ",
]


def description() -> dict[str, Any]:
    """A byte-level BPE with an added token."""
    library = byte_level_bpe()
    library.add_tokens([tokenizers.AddedToken("<mark>", lstrip=True, normalized=False)])
    found: dict[str, Any] = json.loads(library.to_str())
    return found


def main() -> None:
    plain = description()
    prefixed = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "prefix space": {"pre_tokenizer": prefixed},
        "composed": {"normalizer": {"type": "NFC"}},
        "lower case": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}},
    }
    rng = random.Random(0)
    texts = ["", " ", "In the garden", "\n\n", *SENTENCES]
    texts += ["".join(rng.choices(PARTS, k=rng.randrange(1, 8))) for _ in range(40)]
    cases = []
    for name, changed in changes.items():
        # Without this step of its own the library cuts blanks off the places of tokens.
        kept = {"post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}}
        library = tokenizers.Tokenizer.from_str(json.dumps(plain | changed | kept))
        encoded = PreTrainedTokenizerFast(tokenizer_object=library)(
            texts, return_offsets_mapping=True, add_special_tokens=False
        )
        cases += [
            [name, text, ids, [list(span) for span in spans]]
            for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
    text = json.dumps({"description": plain, "changes": changes}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (HERE / "token_offsets.json").write_text(f'{{"tokenizers": {text},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")
