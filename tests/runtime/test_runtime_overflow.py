"""Numbers beyond a dtype: never a finite answer, and an error that names what cures it."""

from dataclasses import replace

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.runtime import Runtime
from refgpt.spec import no_tap
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()


def engine(leaf: str, factor: float, dtype: str | None = None, kv_dtype: str | None = None, layer: int = 1) -> Runtime:
    """A small model with one matrix of a block multiplied by a large number; ``wte`` stands for the embeddings."""
    params = random_params(CONFIG, 5, "f32")
    if leaf == "wte":
        params = replace(params, wte=params.wte * np.float32(factor))
    else:
        block = params.blocks[layer]
        block = replace(block, **{leaf: getattr(block, leaf) * np.float32(factor)})
        params = replace(params, blocks=(*params.blocks[:layer], block, *params.blocks[layer + 1 :]))
    return Runtime(params, CONFIG, dtype=dtype, kv_dtype=kv_dtype, threads=2)


def passes(runtime: Runtime) -> dict[str, object]:
    """Ways to run a text of 20 tokens; the last part of each meets the large numbers of all."""
    ids = list(range(20))

    def decode() -> np.ndarray:
        session = runtime.session(2, 30)
        session.prefill(1, ids[:1])
        return session.decode([1], [3])

    return {
        "logits": lambda: runtime.logits(ids),
        "prefill": lambda: runtime.session(2, 30).prefill(1, ids),
        "short prefill": lambda: runtime.session(2, 30).prefill(1, ids[:5]),
        "decode": decode,
    }


WAYS = list(passes(None))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leaf", ["wk", "wv"])
@pytest.mark.parametrize(("dtype", "kv_dtype"), [("f32", "f16"), ("q8", None), ("q4", None), ("f32", "q8")])
def test_keys_and_values_beyond_float16_name_the_dtype_of_the_cache(leaf, dtype, kv_dtype, way):
    factor = 127 * 6e5 if kv_dtype == "q8" else 6e5  # 8 bits reach 127 times as far
    with pytest.raises(GenerationError, match=r"blocks\.1: .*kv_dtype='f32'"):
        passes(engine(leaf, factor, dtype, kv_dtype))[way]()
    assert np.isfinite(passes(engine(leaf, factor, dtype, "f32"))[way]()).all()


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_overflow_elsewhere_are_not_blamed_on_the_cache(way):
    with np.errstate(over="ignore"):
        for kv_dtype in ("f16", "q8"):
            assert np.isnan(passes(engine("wte", 1e25, "f32", kv_dtype))[way]()).all()


def test_who_looks_inside_sees_where_it_happens():
    seen = {}

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        return seen.setdefault(name, value)

    assert tap is not no_tap
    logits = engine("wv", 1e7, "f32", "f16").logits(list(range(5)), tap=tap)
    assert np.isnan(logits).all()
    assert np.isfinite(seen["blocks.1.v"]).all()
    assert np.isnan(seen["blocks.1.z"]).any()
