"""What a model's files are called in a directory as Hugging Face lays it out, and those of its tokenizer."""

from __future__ import annotations

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
#: Ends the name of an index, which stands for the shards that it lists.
INDEX = ".index.json"
#: Weights, best first.
WEIGHTS = ("model.safetensors", "model.safetensors" + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)

SENTENCEPIECE = "tokenizer.model"
#: Files that make a tokenizer together, in the order in which they are preferred.
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), (SENTENCEPIECE,))
#: What completes a tokenizer, and says what its tokens are for.
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
