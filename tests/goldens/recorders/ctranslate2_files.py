"""Records the files in ctranslate2_files/: models as CTranslate2 writes them, and the logits that it makes of them.

Record with each version of CTranslate2 that has a list below. The weights are ``recorded_params``, laid
out here as CTranslate2's converter does it, which itself takes PyTorch. That CTranslate2's logits are those of a GPT-J
with these weights shows that it was done right.
"""

from __future__ import annotations

import numpy as np

from refgpt.spec.gptj import Params
from tests import goldens
from tests.helpers.tiny import random_params, tiny_config

HERE = goldens.HERE / "ctranslate2_files"
CONFIG = tiny_config(n_layer=2, n_head=2, d_model=16, d_ff=24, d_rotary=4, n_vocab=19, n_ctx=2048, bos_id=18, eos_id=18)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
#: Version -> directory -> quantization. The older one lays the rows of queries and keys as they come.
RECORDED = {
    "4.8.5": {"float32": "float32", "float16": "float16", "int8": "int8", "int8_float16": "int8_float16"},
    "3.11.0": {"interleaved": "float16"},
}


def recorded_params() -> Params:
    """In float32; the two layers share a LayerNorm's offset, which is then stored once."""
    params = random_params(CONFIG, seed=9)
    params.blocks[1].ln_b[...] = params.blocks[0].ln_b
    return params


def tokens() -> list[str]:
    return [f"token {i}" for i in range(CONFIG.n_vocab - 1)] + ["<|endoftext|>"]


def main() -> None:
    import ctranslate2
    from ctranslate2.converters import utils
    from ctranslate2.specs import common_spec, transformer_spec

    permute = getattr(utils, "permute_for_sliced_rotary", None)
    block = {"rotary_interleave": False, "parallel_residual": True, "shared_layer_norm": True}
    for directory, quantization in RECORDED[ctranslate2.__version__].items():
        params = recorded_params()  # anew: quantizing writes into them
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            CONFIG.n_layer,
            CONFIG.n_head,
            pre_norm=True,
            activation=common_spec.Activation.GELUTanh,
            rotary_dim=CONFIG.d_rotary,
            **(block if permute else {"gptj_block": True}),
        )
        decoder = spec.decoder
        decoder.scale_embeddings = False
        decoder.embeddings.weight = params.wte
        decoder.layer_norm.gamma, decoder.layer_norm.beta = params.ln_w, params.ln_b
        decoder.projection.weight, decoder.projection.bias = params.w_head, params.b_head
        for layer, p in zip(decoder.layer, params.blocks, strict=True):
            layer.shared_layer_norm.gamma, layer.shared_layer_norm.beta = p.ln_w, p.ln_b
            turned = [w if permute is None else permute(w.copy(), CONFIG.n_head, CONFIG.d_rotary) for w in (p.wq, p.wk)]
            layer.self_attention.linear[0].weight = np.concatenate([*turned, p.wv])
            layer.self_attention.linear[1].weight = p.wo
            layer.ffn.linear_0.weight, layer.ffn.linear_0.bias = p.w_in, p.b_in
            layer.ffn.linear_1.weight, layer.ffn.linear_1.bias = p.w_out, p.b_out
        spec.register_vocabulary(tokens())
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "<|endoftext|>"
        spec.validate()
        spec.optimize(quantization=quantization)
        (HERE / directory).mkdir(parents=True, exist_ok=True)
        spec.save(str(HERE / directory))
        model = ctranslate2.Generator(str(HERE / directory), compute_type="float32")
        np.save(HERE / directory / "logits.npy", np.array(model.forward_batch([IDS]))[0])
