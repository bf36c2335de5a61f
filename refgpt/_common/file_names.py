"""Names of the files in a Hugging Face model directory, including its tokenizer's."""

from __future__ import annotations

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
#: Suffix of the name of an index, a file that lists the shards.
INDEX = ".index.json"
#: Files of weights, in order of preference.
WEIGHTS = ("model.safetensors", "model.safetensors" + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)

SENTENCEPIECE = "tokenizer.model"
#: Groups of files that together make a tokenizer, in order of preference.
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), (SENTENCEPIECE,))
#: Files that complete a tokenizer, and give its tokens their roles.
ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
TOKENIZER_FILES = (
    *(name for form in TOKENIZER_FORMS for name in form),
    ADDED_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
)
