"""Draws the results of ``refgpt.tracing`` with matplotlib: ``pip install 'refgpt[plot]'``.

Each function takes the result of a function of ``refgpt.tracing``, and token labels from ``token_labels``. It draws on
the given axes or on new ones, and returns them. Nothing is shown or saved, and no setting of matplotlib is changed:
``ax.figure.savefig("picture.png")``. The first layer is at the bottom.
"""

from refgpt.plotting.attention import attention_grid, attention_map
from refgpt.plotting.bars import attribution_bars
from refgpt.plotting.labels import readable, token_labels
from refgpt.plotting.lines import error_lines, loss_lines, norm_lines, save_loss_lines, token_lines
from refgpt.plotting.maps import causal_map, error_map, head_map, lens_map

__all__ = [
    "attention_grid",
    "attention_map",
    "attribution_bars",
    "causal_map",
    "error_lines",
    "error_map",
    "head_map",
    "lens_map",
    "loss_lines",
    "norm_lines",
    "readable",
    "save_loss_lines",
    "token_labels",
    "token_lines",
]
