"""The specification: GPT-J's forward pass in plain NumPy, and how far float32 arithmetic may stray from it."""

from refgpt.spec.gptj import forward
from refgpt.spec.masks import causal_mask, prefix_mask
from refgpt.spec.primitives import embedding, gelu, layer_norm, linear, softmax
from refgpt.spec.rotary import rotary_angles, rotate_pairs
from refgpt.spec.taps import Recorder, Tap, checked, no_tap, prefixed, tap_axes, tap_names, tap_shapes

__all__ = [
    "Recorder",
    "Tap",
    "causal_mask",
    "checked",
    "embedding",
    "forward",
    "gelu",
    "layer_norm",
    "linear",
    "no_tap",
    "prefix_mask",
    "prefixed",
    "rotary_angles",
    "rotate_pairs",
    "softmax",
    "tap_axes",
    "tap_names",
    "tap_shapes",
]
