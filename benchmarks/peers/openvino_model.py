"""The same model for OpenVINO: transformers' PyTorch model, traced with its keys and values, which become states.

OpenVINO's converter traces one pass. The keys and values of earlier passes are inputs and outputs of it at first; then
each pair of these becomes a state that stays in the engine between two passes. Weights of 8 and 4 bits are made by
NNCF, from the float16 model.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.modules.setdefault("openvino_telemetry", None)  # without it OpenVINO does not report its use

MODEL = "openvino_model.xml"
#: The names of the inputs: ids [b, t], and which row of the states each text continues [b].
IDS, ROWS = "input_ids", "beam_idx"


def make_float16(checkpoint: Path, directory: Path) -> None:
    """The checkpoint as a model with states, matrices in float16."""
    import openvino
    import torch
    import transformers
    from openvino._offline_transformations import apply_make_stateful_transformation

    torch.set_grad_enabled(False)
    found = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    config = found.config
    n_layer, n_head = config.num_hidden_layers, config.num_attention_heads
    d_head = config.hidden_size // n_head
    past = [torch.zeros(2, n_head, 3, d_head) for _ in range(2 * n_layer)]
    example = {IDS: torch.ones(2, 4, dtype=torch.long), ROWS: torch.arange(2, dtype=torch.int32), "past": past}
    model = openvino.convert_model(one_pass(found), example_input=example)
    names = [f"{kind}.{i}" for i in range(n_layer) for kind in ("key", "value")]
    for port, name in zip(model.inputs, [IDS, ROWS, *(f"past.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
        shape = {IDS: [-1, -1], ROWS: [-1]}.get(name, [-1, n_head, -1, d_head])
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(model.outputs, ["logits", *(f"new.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {f"past.{name}": f"new.{name}" for name in names})
    begin_empty(model, n_head, d_head)
    write(model, directory)


def one_pass(model: Any) -> Any:
    """A module for one pass after what the states hold: (ids, rows, states) -> (logits of the last token, states)."""
    import torch

    class States:
        """What transformers calls a cache."""

        def __init__(self, tensors: list[Any]) -> None:
            self.tensors = tensors

        def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
            for at, new in ((2 * layer, key), (2 * layer + 1, value)):
                self.tensors[at] = torch.cat([self.tensors[at], new], dim=2)
            return self.tensors[2 * layer], self.tensors[2 * layer + 1]

        def get_seq_length(self, layer: int = 0) -> int:
            return self.tensors[2 * layer].shape[2]

    class OnePass(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, beam_idx: Any, past: list[Any]) -> tuple[Any, ...]:
            n_past, n_new = past[0].shape[2], input_ids.shape[1]
            keys = torch.arange(n_past + n_new)
            positions = keys[n_past:]
            mask = (keys[None] <= positions[:, None])[None, None].expand(input_ids.shape[0], 1, -1, -1)
            states = States([tensor.index_select(0, beam_idx) for tensor in past])
            found = self.model(
                input_ids,
                cache=states,
                attention_mask=mask,
                position_ids=positions[None],
                use_cache=True,
                logits_to_keep=1,
            )
            return found.logits, *states.tensors

    return OnePass()


def begin_empty(model: Any, n_head: int, d_head: int) -> None:
    """Let states begin with no position, for as many texts as there are ids of."""
    import numpy as np
    from openvino import opset13 as ops

    shape = ops.shape_of(model.input(IDS), output_type="i64")
    n_texts = ops.gather(shape, np.int64([0]), np.int64(0))
    empty = ops.concat([n_texts, np.int64([n_head]), np.int64([0]), np.int64([d_head])], axis=0)
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            op.set_arguments([ops.broadcast(np.float32(0), empty)])
    model.validate_nodes_and_infer_types()


def make_compressed(bits: int, source: Path, directory: Path) -> None:
    """The float16 model with weights of 8 or 4 bits, by NNCF with its defaults, but the head in 4 bits too."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source / MODEL)
    mode = nncf.CompressWeightsMode
    options: dict[str, Any] = {"mode": mode.INT4_SYM, "all_layers": True} if bits == 4 else {"mode": mode.INT8_ASYM}
    no_weights = nncf.IgnoredScope(patterns=[".*rotary_emb.*"], validate=False)  # sines and cosines, in GPT-J a table
    write(nncf.compress_weights(model, ignored_scope=no_weights, **options), directory)


def write(model: Any, directory: Path) -> None:
    import openvino

    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    openvino.save_model(model, partial / MODEL, compress_to_fp16=True)
    partial.rename(directory)
