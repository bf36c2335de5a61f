"""Unusable arguments of the kernels of training: a KernelError before anything is written."""

import numpy as np
import pytest

from refgpt import kernels
from refgpt._common.errors import KernelError
from refgpt.kernels import pack
from tests.kernels.test_arguments import CHANGES, fixed, floats, indices

T, C, F, HEADS, D, V = 5, 12, 20, 3, 4, 7
MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8, "rate": 1e-3}
AVERAGED = {"mean_correction": 0.5, "square_correction": 0.3, "of_variance": 0.2}

# Every op with arguments that it accepts.
GOOD = {
    "linear_backward": lambda: {"dy": floats(T, F), "w": pack(floats(F, C)), "out": floats(T, C)},
    "linear_weight_backward": lambda: {
        "dy": floats(T, F),
        "x": floats(T, C),
        "into": floats(F, C),
        "starts": indices(0, 2, T),
    },
    "column_sum": lambda: {"x": floats(T, C), "into": floats(C), "starts": indices(0, T)},
    "attention_backward": lambda: {
        **{name: floats(T, HEADS, D) for name in ("dz", "q", "k", "v")},
        "n_visible": indices(1, 2, 3, 4, 5),
        "first_visible": indices(0, 1, 0, 3, 2),
        "dpattern": floats(HEADS, T, T),
        "scratch": floats(4, kernels.attention_backward_scratch(T, D)),
        "starts": indices(0, T),
    },
    "layer_norm_backward": lambda: {"dy": floats(T, C), "x": floats(T, C), "w": floats(C), "eps": 1e-5},
    "layer_norm_weight_backward": lambda: {
        "dy": floats(T, C),
        "x": floats(T, C),
        "moments": floats(T, 2),
        "into": floats(C),
        "starts": indices(0, 3, 3, T),
    },
    "embedding_backward": lambda: {"dy": floats(T, C), "ids": indices(0, 1, 2, 2, 6), "into": floats(V, C)},
    "cross_entropy_backward": lambda: {
        "dy": floats(T),
        "logits": floats(T, V),
        "targets": indices(0, 1, 2, 2, 6),
        "out": floats(T, V),
        "parts": floats(T, 2),
    },
    "gelu_erf_backward": lambda: {"x": floats(T, C), "dy": floats(T, C), "out": floats(T, C)},
    "adamw": lambda: {**{name: floats(T, C) for name in ("w", "g", "mean", "square")}, **MOMENTS, "correction": 0.5},
    "adamw_averaged": lambda: {
        **{name: floats(T, C) for name in ("w", "g", "mean", "square")},
        **MOMENTS,
        **AVERAGED,
    },
    "orthogonalised": lambda: {"x": floats(T, C), "coefficients": (3.0, -4.0, 2.0), "n_steps": 2},
}
WRITTEN = ("out", "into", "dpattern", "scratch", "parts", "w", "mean", "square")
HARMLESS = {
    ("attention_backward", "scratch", "longer"),
    ("embedding_backward", "into", "longer"),
    ("orthogonalised", "x", "longer"),
}
ARRAYS = [(op, name) for op, make in GOOD.items() for name, value in make().items() if isinstance(value, np.ndarray)]
STARTING = [op for op, name in ARRAYS if name == "starts"]
INDEX_ARRAYS = [(op, name) for op, name in ARRAYS if GOOD[op]()[name].dtype == np.int64]
OUTPUTS = [(op, name) for op, name in ARRAYS if name in WRITTEN and (op, name) != ("layer_norm_backward", "w")]
#: Outputs that may be an input.
IN_PLACE = {("cross_entropy_backward", "out", "logits"), *(("gelu_erf_backward", "out", name) for name in ("x", "dy"))}
FAULTS = [
    *((op, name, what, change) for op, name in ARRAYS for what, change in CHANGES.items()),
    *((op, name, "of float64", lambda x: x.astype(np.float64)) for op, name in ARRAYS),
    *((op, name, "as a list", lambda x: x.tolist()) for op, name in ARRAYS),
    *((op, name, "with -1", lambda x: np.append(indices(-1), x[1:])) for op, name in INDEX_ARRAYS),
    *((op, name, "just too large", lambda x: np.append(x[:-1], indices(7))) for op, name in INDEX_ARRAYS),
    *((op, name, "read-only", fixed) for op, name in OUTPUTS),
    ("attention_backward", "first_visible", "of a row that sees no key", lambda x: np.append(indices(1), x[1:])),
    ("attention_backward", "divisor", "of nothing", lambda x: 0.0),
    *((op, "starts", "that go back", lambda x: indices(0, 4, 2, T)) for op in STARTING),
    *((op, "starts", "after the first row", lambda x: indices(1, T)) for op in STARTING),
    *((op, "starts", "before the last row", lambda x: indices(0, T - 1)) for op in STARTING),
    *((op, "starts", "of no text", lambda x: indices(T)) for op in STARTING),
    ("layer_norm_backward", "eps", "as a text", lambda x: "1e-5"),
    ("linear_backward", "w", "that were never packed", lambda x: floats(F, C)),
]


@pytest.mark.parametrize("op", GOOD)
def test_good_arguments_are_accepted(op):
    getattr(kernels, op)(**GOOD[op](), threads=2)


@pytest.mark.parametrize(
    ("op", "name", "what", "change"),
    [fault for fault in FAULTS if fault[:3] not in HARMLESS],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_unusable_arguments_are_refused(op, name, what, change):
    arguments = GOOD[op]()
    arguments[name] = change(arguments.get(name))
    before = {key: value.copy() for key, value in arguments.items() if isinstance(value, np.ndarray) and key != name}
    with pytest.raises(KernelError):
        getattr(kernels, op)(**arguments, threads=2)
    for key, value in before.items():
        assert (arguments[key] == value).all()


@pytest.mark.parametrize(("op", "name"), OUTPUTS)
def test_outputs_overlap_no_input(op, name):
    for other, value in GOOD[op]().items():
        arguments = GOOD[op]()
        if other == name or (op, name, other) in IN_PLACE or not isinstance(value, np.ndarray):
            continue
        if value.dtype == np.float32 and value.size >= arguments[name].size:
            arguments[name] = arguments[other].reshape(-1)[: arguments[name].size].reshape(arguments[name].shape)
            with pytest.raises(KernelError, match="overlaps"):
                getattr(kernels, op)(**arguments, threads=2)


def test_scratch_for_too_few_threads_is_refused():
    arguments = GOOD["attention_backward"]()
    arguments["scratch"] = arguments["scratch"][:1]
    with pytest.raises(KernelError, match="scratch"):
        kernels.attention_backward(**arguments, threads=2)
