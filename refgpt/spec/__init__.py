"""The specification: the models in plain NumPy, one file per family, and bounds for float32 rounding errors."""

from refgpt.spec.families import FAMILIES, family_of, forward, leaf_shapes, tap_names, tap_shapes
from refgpt.spec.masks import causal_mask, local_mask, prefix_mask
from refgpt.spec.ops import embedding, gelu, gelu_erf, layer_norm, linear, products_in, softmax
from refgpt.spec.positions import rotary_angles, rotate_halves, rotate_pairs
from refgpt.spec.taps import Recorder, Tap, TapNames, checked, no_tap, prefixed, tap_axes

__all__ = [
    "FAMILIES",
    "Recorder",
    "Tap",
    "TapNames",
    "causal_mask",
    "checked",
    "embedding",
    "family_of",
    "forward",
    "gelu",
    "gelu_erf",
    "layer_norm",
    "leaf_shapes",
    "linear",
    "local_mask",
    "no_tap",
    "prefix_mask",
    "prefixed",
    "products_in",
    "rotary_angles",
    "rotate_halves",
    "rotate_pairs",
    "softmax",
    "tap_axes",
    "tap_names",
    "tap_shapes",
]
