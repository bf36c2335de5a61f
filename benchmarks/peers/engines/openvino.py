"""OpenVINO, with keys and values kept in the model's states, see ``openvino_model.py``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.engines import n_embedding, seconds
from benchmarks.peers.openvino_model import IDS, MODEL, ROWS

import openvino  # isort: skip  # after openvino_model, which keeps it from reporting its use

#: Bytes of a weight of the embedding table; in 4 bits a float16 scale for 128 of them comes with it.
WIDTHS = {"bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 128}


class OpenVINO:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        # Keys and values in 16 bits, as the other engines keep them; its own default is 8. All else is its default:
        # where the processor multiplies bfloat16, so does it, and activations are rounded to 8 bits for 8 and 4.
        kv_type = "bf16" if precision == "bf16" else "f16"
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "KV_CACHE_PRECISION": kv_type,
        }
        if "ONEDNN_MAX_CPU_ISA" in os.environ:  # its products obey that, but its choice of what to multiply does not
            options |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        compiled = openvino.compile_model(path / MODEL, "CPU", options)
        self.request = compiled.create_infer_request()
        self.n_bytes = (path / MODEL).with_suffix(".bin").stat().st_size - WIDTHS[precision] * n_embedding(path.parent)
        self.about = {
            "openvino": openvino.__version__,
            "compute type": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        return self._run([ids], n_new)

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float:
        return self._run(prompts, n_new)[1]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.request.reset_state()
        return self._pass([ids])[0, -1]

    def _run(self, prompts: Sequence[Sequence[int]], n_new: int) -> tuple[float, float]:
        self.request.reset_state()

        def decode() -> None:
            for i in range(n_new):
                self._pass([[ids[i % len(ids)]] for ids in prompts])

        return seconds(lambda: self._pass(prompts)), seconds(decode)

    def _pass(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores of the token after each text's last one. -> [b, 1, v]"""
        inputs = {IDS: np.array(ids, np.int64), ROWS: np.arange(len(ids), dtype=np.int32)}
        return self.request.infer(inputs, share_inputs=True, share_outputs=True)["logits"]


load = OpenVINO
