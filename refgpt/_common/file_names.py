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
ADDED_TOKENS = "added_tokens.json"
#: Where the token that ends a text is looked for, in this order.
TOKENIZER_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
TOKENIZER_FILES = (*(name for form in TOKENIZER_FORMS for name in form), ADDED_TOKENS, *TOKENIZER_SETTINGS)
