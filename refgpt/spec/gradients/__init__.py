"""The specification of gradients: the backward of each operation beside its formula, one file a family."""

from refgpt.spec.gradients.families import FAMILIES, gradients_of
from refgpt.spec.gradients.loss import NO_TARGET, Text, check_labels, gradients, loss_backward, no_targets, targets_of
from refgpt.spec.gradients.ops import (
    ACTIVATIONS_BACKWARD,
    bias_backward,
    cross_entropy,
    cross_entropy_backward,
    embedding_backward,
    gelu_backward,
    gelu_erf_backward,
    layer_norm_backward,
    linear_backward,
    linear_weight_backward,
    rotate_halves_backward,
    rotate_pairs_backward,
    softmax_backward,
)
from refgpt.spec.gradients.wanted import Addend, Gradient, LeafGradients

__all__ = [
    "ACTIVATIONS_BACKWARD",
    "FAMILIES",
    "NO_TARGET",
    "Addend",
    "Gradient",
    "LeafGradients",
    "Text",
    "bias_backward",
    "check_labels",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding_backward",
    "gelu_backward",
    "gelu_erf_backward",
    "gradients",
    "gradients_of",
    "layer_norm_backward",
    "linear_backward",
    "linear_weight_backward",
    "loss_backward",
    "no_targets",
    "rotate_halves_backward",
    "rotate_pairs_backward",
    "softmax_backward",
    "targets_of",
]
