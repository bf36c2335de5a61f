"""What cannot be drawn is said once, before anything is drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from refgpt import plotting
from refgpt._common.errors import RefgptError
from tests.helpers.pictures import attribution, comparison, lens_logits, patterns, trace

ATTN = patterns(4)
CASES = [
    (lambda: plotting.attention_map(patterns(2, 4)), r"pattern: .*got an array \[2, 4, 4\].*\[query, key\]"),
    (lambda: plotting.attention_map("abc"), "pattern: is no array of numbers; got str"),
    (lambda: plotting.attention_map(np.ones((0, 0))), r"pattern: .*\[0, 0\]"),
    (lambda: plotting.attention_map(ATTN, list("abc")), "tokens: .*got 3 labels; wanted a list of 4; .*token_labels"),
    (lambda: plotting.attention_map(ATTN, "abcd"), "tokens: .*got one text"),
    (lambda: plotting.attention_map(ATTN, [5, 6, 7, 8]), "tokens: are no texts; got int 5; .*token_labels"),
    (lambda: plotting.attention_map(ATTN[:2], list("abcd"), queries=[b"a", b"b"]), "queries: are no texts; got bytes"),
    (lambda: plotting.attention_map(ATTN[:2], list("abcd"), queries=["a"]), "queries: .*got 1 labels"),
    (lambda: plotting.attention_map(ATTN, ax=plt.subplots(2)[1]), "ax: is no axes; got ndarray"),
    (lambda: plotting.attention_map(ATTN, ax=plt.figure()), "ax: is no axes; got Figure"),
    (lambda: plotting.attention_grid(ATTN), r"patterns: .*got an array \[4, 4\]"),
    (lambda: plotting.attention_grid({"embed": ATTN}), "patterns: there is no pattern in it; got embed; .*pattern"),
    (lambda: plotting.attention_grid({}), "got nothing"),
    (
        lambda: plotting.attention_grid({"blocks.0.pattern": patterns(2, 4), "blocks.1.pattern": patterns(2, 3)}),
        r"one shape; got blocks.0.pattern \[2, 4, 4\], blocks.1.pattern \[2, 3, 3\]",
    ),
    (lambda: plotting.attention_grid(patterns(3, 4), axes=plt.subplots(2)[1]), "axes: .*got 2 axes; wanted 3"),
    (lambda: plotting.attention_grid(patterns(2, 4), axes=[None, plt.subplots()[1]]), "axes: is no axes; got None"),
    (lambda: plotting.head_map(np.ones(3)), r"scores: .*got an array \[3\]; wanted numbers \[layer, head\]"),
    (lambda: plotting.lens_map(np.ones((2, 3))), r"lens: .*got an array \[2, 3\]"),
    (lambda: plotting.lens_map(lens_logits(2, 3), ["a"]), "tokens: .*got 1 labels; wanted a list of 3"),
    (lambda: plotting.lens_map(lens_logits(2, 3), [1, 2, 3]), "tokens: are no texts; got int 1"),
    (lambda: plotting.lens_map(lens_logits(2, 3), targets=[1, 2]), "targets: .*got 2"),
    (lambda: plotting.causal_map(np.ones((2, 3))), "trace: .*got ndarray; .*tracing.causal_trace returns"),
    (lambda: plotting.causal_map(trace(), ["a"]), "tokens: .*got 1 labels; wanted a list of 3"),
    (lambda: plotting.attribution_bars(trace()), "attribution: .*logit_attribution returns"),
    (lambda: plotting.attribution_bars(attribution(), by="neuron"), "by: .*neuron"),
    (lambda: plotting.attribution_bars(attribution(), named=-1), "named: .*-1"),
    (lambda: plotting.error_map(attribution()), "comparison: .*compare returns"),
    (lambda: plotting.error_map(comparison(), measure="cosine"), "measure: .*cosine"),
    (lambda: plotting.error_map(comparison(n_layer=0)), "comparison: no activation of a block was compared; got embed"),
    (lambda: plotting.error_map(comparison(scale=0.0)), "comparison: has no error to draw"),
    (lambda: plotting.error_lines({"q4": 3}), "q4: cannot be drawn; got int"),
    (lambda: plotting.error_lines({}), "comparisons: leaves nothing to draw"),
    (lambda: plotting.error_lines({"q4": comparison()}, parts="mlp"), "q4, parts: was not compared; got 'mlp'"),
    (lambda: plotting.norm_lines(np.ones(3)), r"norms: .*\[depth, position\]"),
    (lambda: plotting.token_lines({"a": [1, 2], "b": [1]}), "values: .*got a: 2, b: 1"),
    (lambda: plotting.token_lines([1, 2], ["a", None]), "tokens: are no texts; got NoneType None"),
    (lambda: plotting.token_lines([1, 2], ["a"]), "tokens: .*got 1 labels"),
]


@pytest.mark.parametrize(("draw", "said"), CASES)
def test_what_cannot_be_drawn_is_refused(draw, said):
    plt.close("all")
    with pytest.raises(RefgptError, match=said):
        draw()
    for number in plt.get_fignums():  # of the case's own making, and empty still
        assert not any(ax.has_data() for ax in plt.figure(number).axes)


def test_without_matplotlib_one_error_names_the_extra():
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
import refgpt
from refgpt import plotting
for draw in (lambda: plotting.head_map(np.ones((2, 2))), lambda: plotting.attention_grid(np.ones((1, 2, 2))),
             lambda: plotting.attention_map(np.ones((2, 2)), ["a", "b"]),
             lambda: plotting.token_lines([1, 2], ["a", "b"]),
             lambda: plotting.lens_map(np.ones((2, 2, 2)), ["a", "b"]), lambda: plotting.norm_lines(np.ones((2, 2)))):
    try:
        draw()
    except refgpt.RefgptError as error:
        print(error)
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["refgpt.plotting: pictures need matplotlib; pip install 'refgpt[plot]'"] * 6, run


def test_matplotlib_is_only_imported_to_draw():
    code = "import sys; import refgpt, refgpt.plotting; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.stdout.strip() == "False"
