"""The backward pass in kernels: what ``refgpt.spec.gradients`` specifies, with the same bits on every machine.

A family's file reads like that of its spec. Gradients of weights are handed on as what they are sums of (``weights``).
"""

from refgpt.runtime.gradients.families import FAMILIES
from refgpt.runtime.gradients.loss import loss_backward, texts_backward
from refgpt.runtime.gradients.ops import Ops
from refgpt.runtime.gradients.room import StepMemory
from refgpt.runtime.gradients.weights import MatrixGradient, product

__all__ = ["FAMILIES", "MatrixGradient", "Ops", "StepMemory", "loss_backward", "product", "texts_backward"]
