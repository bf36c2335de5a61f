"""Record the text and the logits that PyTorch's GPT-J gives for the default model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import GPTJForCausalLM

from refgpt.checkpoints import open_checkpoint
from tests.goldens import HERE
from tests.goldens.recorders.activations import compute_in_float64, run, use_exact_rotary_table

PROMPT = "Once upon a time there was"
N_NEW = 400


def main() -> None:
    torch.set_num_threads(1)
    directory = Path("weights/default")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    model = GPTJForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    ids = model.generate(prompt, do_sample=False, max_new_tokens=N_NEW, eos_token_id=None, pad_token_id=0)[0].numpy()

    shape = open_checkpoint(directory).config
    logits, *_ = run(model, ids, 0)
    compute_in_float64(model)
    same_table, *_ = run(model, ids, 0)
    use_exact_rotary_table(model, shape)
    exact, *_ = run(model, ids, 0)
    rows = np.arange(0, len(ids), 37)
    np.savez_compressed(
        HERE / "default_model.npz",
        prompt=PROMPT,
        ids=ids,
        text=tokenizer.decode(ids.tolist()),
        rows=rows,
        logits=logits[rows],
        logits_float64=exact[rows],
        torch_float32_error=np.abs(logits - same_table).max() / same_table.std(),
    )
