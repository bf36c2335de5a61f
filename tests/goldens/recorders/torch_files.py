"""Records the files in torch_files/: what torch and transformers themselves write for the smallest GPT-J there is.

The files hold ``recorded_state``, which needs no torch, so that the tests know every number in them.
"""

from __future__ import annotations

import numpy as np

from tests import goldens
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import buffers, config_json, state_dict

HERE = goldens.HERE / "torch_files"
CONFIG = tiny_config(n_layer=1, n_head=2, d_model=8, d_ff=12, d_rotary=2, n_vocab=11, n_ctx=6)


def recorded_state(dtype: str) -> dict[str, np.ndarray]:
    """The weights in the recorded files; ``dtype`` as in ``random_params``."""
    return state_dict(random_params(CONFIG, seed=9, dtype=dtype))


def main() -> None:
    import json

    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)

    def tensors(dtype: str, mask: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        state = recorded_state(dtype) | ({} if mask is None else buffers(mask, CONFIG.n_layer))
        if dtype != "bf16":
            return {name: torch.from_numpy(array) for name, array in state.items()}
        raw = {name: torch.from_numpy(array.view("<u2").view("<i2")) for name, array in state.items()}
        return {name: tensor.view(torch.bfloat16) for name, tensor in raw.items()}

    causal, ones = np.tri(CONFIG.n_ctx, dtype=bool), np.ones((CONFIG.n_ctx, CONFIG.n_ctx), bool)
    f32, half = tensors("f32", causal), tensors("f16", ones.astype(np.uint8))
    transposed = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in f32.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors("f32").items()}
    HERE.mkdir(exist_ok=True)
    (HERE / "config.json").write_text(json.dumps(config_json(CONFIG), indent=1) + "\n")
    torch.save(f32, HERE / "float32_causal.bin")
    torch.save(half, HERE / "float16_ones.bin")
    torch.save(tensors("bf16"), HERE / "bfloat16.bin")
    torch.save(transposed, HERE / "transposed.bin")
    torch.save(parameters, HERE / "parameters.bin")
    shared = torch.arange(24, dtype=torch.float32)
    torch.save({"low": shared[:12].view(3, 4), "high": shared[6:18].view(4, 3).t()}, HERE / "shared_storage.bin")
    torch.save(tensors("f32"), HERE / "before_torch_1_6.bin", _use_new_zipfile_serialization=False)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.norm = torch.nn.BatchNorm1d(2)

    torch.save(Module().state_dict(), HERE / "module_state.bin")

    model = GPTJForCausalLM(GPTJConfig(**config_json(CONFIG)))
    model.load_state_dict(tensors("f16"), strict=True)
    model.half().save_pretrained(HERE / "transformers")
