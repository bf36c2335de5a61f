"""Pictures of what ``refgpt.tracing`` finds, with matplotlib: ``pip install 'refgpt[plot]'``.

Each function takes what a function of ``refgpt.tracing`` returned, and labels of tokens from ``token_labels``; it draws
on the axes that it is given, or on new ones, and returns them. Nothing is shown or saved, and no setting of matplotlib
is changed: ``ax.figure.savefig("picture.png")``. Layers rise from below, as the residual stream does.
"""

from refgpt.plotting.attention import attention_grid, attention_map
from refgpt.plotting.bars import attribution_bars
from refgpt.plotting.labels import readable, token_labels
from refgpt.plotting.lines import error_lines, norm_lines, token_lines
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
    "norm_lines",
    "readable",
    "token_labels",
    "token_lines",
]
