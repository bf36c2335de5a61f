"""The backward pass in kernels: what ``refgpt.spec.gradients`` specifies, with the same bits on every machine.

Products of matrices are the linear kernel's, sums of rows ``row_sum``'s; what is left is elementwise, and NumPy rounds
sums, products, quotients and roots of floats as every machine does.
"""

from refgpt.runtime.gradients.families import FAMILIES
from refgpt.runtime.gradients.loss import loss_backward
from refgpt.runtime.gradients.ops import Ops

__all__ = ["FAMILIES", "Ops", "loss_backward"]
