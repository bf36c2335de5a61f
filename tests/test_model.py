"""Loading and using a model, through both backends."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import numpy as np
import pytest

import refgpt
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.conversion import convert
from refgpt.kernels import force_isa, list_kernels
from refgpt.numbers.casting import kept_leaf
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.spec import forward, tap_names
from refgpt.tokenizers import find_tokenizer, load_tokenizer
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)
PARAMS = random_params(CONFIG, seed=2, dtype="f16")
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
BACKENDS = ["c", "numpy"]
# Of the logits' standard deviation: against a wrong mask, dtype or backend. Rounding is judged by ``Model.verify``.
FLOAT32_CLOSE = 1e-4

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tokenizer(write_model(tmp_path_factory.mktemp("models") / "causal", CONFIG, PARAMS))


@pytest.fixture(scope="module")
def prefix_path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "both_ways", CONFIG, PARAMS, prefix=True)


def assert_close(got, want):
    assert (np.abs(got - want) <= FLOAT32_CLOSE * want.std()).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefix_len", [0, 5])
@pytest.mark.parametrize("dtype", [None, "f32", "f16"])
def test_logits_and_trace_are_the_specs(path, backend, prefix_len, dtype):
    model = refgpt.load(path, backend=backend, dtype=dtype, threads=1)
    got = model.logits(IDS, prefix_len)
    assert got.shape == (len(IDS), CONFIG.n_vocab) and got.dtype == np.float32
    assert_close(got, forward(PARAMS, CONFIG, IDS, prefix_len))
    trace = model.trace(IDS, prefix_len)
    assert list(trace) == tap_names(CONFIG)
    assert (trace["logits"] == got).all()
    some = model.trace(IDS, prefix_len, names=["ln_final", "embed"])
    assert list(some) == ["embed", "ln_final"] and (some["ln_final"] == trace["ln_final"]).all()


@pytest.mark.parametrize("options", [{}, {"dtype": "f16", "kv_dtype": "f16"}, {"backend": "numpy", "dtype": "f64"}])
@pytest.mark.parametrize("prefix_len", [0, 5])
def test_verify_finds_a_good_engine_within_its_bounds(path, options, prefix_len):
    report = refgpt.load(path, **options).verify(IDS, prefix_len)
    assert [tap.name for tap in report.taps] == tap_names(CONFIG)
    assert report.first_broken is None


def test_verify_finds_weights_that_are_not_the_files(path):
    model, other = refgpt.load(path), random_params(CONFIG, seed=3, dtype="f16")
    wrong = dataclasses.replace(model, checkpoint=dataclasses.replace(model.checkpoint, params=other))
    assert wrong.verify(IDS).first_broken.name == "embed"


def test_numpy_float64_is_the_oracle_itself(path):
    got = refgpt.load(path, backend="numpy", dtype="f64").logits(IDS, 2)
    assert got.dtype == np.float64
    assert (got == forward(PARAMS, CONFIG, IDS, 2)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_f16_rounds_matrices_and_nothing_else(tmp_path, backend):
    wide = random_params(CONFIG, seed=2)
    model = refgpt.load(write_model(tmp_path, CONFIG, wide), backend=backend, dtype="f16", threads=1)
    rounded = wide.map(lambda name, leaf: kept_leaf(name, leaf, "f16"))
    assert rounded.wte.dtype == np.float16 and rounded.b_head.dtype == np.float32
    want = forward(rounded, CONFIG, IDS)
    assert np.abs(want - forward(wide, CONFIG, IDS)).max() > 2 * FLOAT32_CLOSE * want.std()
    assert_close(model.logits(IDS), want)
    kept = model.params()
    assert all((a == b).all() for (_, a), (_, b) in zip(kept.items(), rounded.items(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["q8", "q4", "q3"])
def test_quantised_while_it_is_loaded(path, backend, dtype):
    model = refgpt.load(path, backend=backend, dtype=dtype, threads=1)
    kept = model.params()
    assert (kept.wte.kind, kept.w_head.kind) == ("q8", dtype)
    want = forward(kept, CONFIG, IDS)
    room = {"c": 0.05, "numpy": FLOAT32_CLOSE}[backend]  # what meets the matrices is rounded to 8 bits in C
    assert np.abs(model.logits(IDS) - want).max() <= room * want.std()
    assert np.abs(want - forward(PARAMS, CONFIG, IDS)).max() > 2 * FLOAT32_CLOSE * want.std()
    if backend == "c":
        assert model.verify(IDS).first_broken is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_generating_from_text(path, backend):
    model = refgpt.load(path, backend=backend, threads=1)
    params = {"max_new_tokens": 20, "seed": 4, "ignore_eos": True, "stop": ["qqqq"]}
    one = model.generate("Once upon", **params)
    assert one.n_prompt == 9 and len(one.ids) == 20
    assert one.text == model.tokenizer.decode(one.ids)
    assert "".join(model.stream("Once upon", **params)) == one.text
    assert model.generate(model.tokenizer.encode("Once upon"), **params) == one
    assert model.generate(["a", "Once upon", [5, 6]], **params)[1] == one


def test_both_backends_write_the_same(path):
    texts = {
        refgpt.load(path, backend=backend, threads=1).generate("Hi", seed=1, max_new_tokens=30).text
        for backend in BACKENDS
    }
    assert len(texts) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_do_not_change_the_text(path, backend):
    models = [refgpt.load(path, backend=backend, threads=n) for n in (1, 2, 3)]
    assert backend == "numpy" or [model.engine.threads for model in models] == [1, 2, 3]
    assert len({model.generate("Hi", seed=3).text for model in models}) == 1


def test_instruction_sets_do_not_change_the_text(path):
    isas = {kernel.isa for kernel in list_kernels() if kernel.obstacle is None}
    done = []
    for isa in isas:
        with force_isa(isa):
            done.append(refgpt.load(path, threads=1).generate("Hi", seed=3, top_p=0.9, logprobs=3))
    assert "scalar" in isas and all(one == done[0] for one in done)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_without_tokenizer_runs_on_ids(prefix_path, backend):
    model = refgpt.load(prefix_path, backend=backend, threads=1)
    assert model.tokenizer is None
    got = model.generate([1, 2, 3], max_new_tokens=4, temperature=0, ignore_eos=True)
    assert (got.text, len(got.ids)) == ("", 4)
    with pytest.raises(refgpt.GenerationError, match="no tokenizer, so there is no text to stream"):
        model.stream([1, 2, 3])
    with pytest.raises(refgpt.GenerationError, match="no tokenizer"):
        model.generate("text")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_prefix_mask_is_found_said_and_used(prefix_path, backend, caplog):
    with caplog.at_level(logging.INFO, "refgpt"):
        model = refgpt.load(prefix_path, backend=backend, threads=1)
    assert model.mask == "prefix" and "all ones" in model.mask_source
    (said,) = caplog.records
    assert "prefix mask" in said.getMessage() and model.mask_source in said.getMessage()
    assert said.levelno == logging.WARNING  # which Python shows on standard error though nobody set up logging
    got = model.generate(IDS, max_new_tokens=10, temperature=0, ignore_eos=True)
    rows = forward(PARAMS, CONFIG, [*IDS, *got.ids], prefix_len=len(IDS))
    assert got.ids == rows[len(IDS) - 1 : -1].argmax(-1).tolist()


def test_a_mask_that_was_found_is_said_and_one_taken_for_granted_is_not(tmp_path, path, caplog):
    causal = write_model(tmp_path / "gpt-jt-tuned", CONFIG, PARAMS, prefix=False)
    named = write_model(tmp_path / "GPT-JT-6B-v1", CONFIG, PARAMS)
    with caplog.at_level(logging.INFO, "refgpt"):
        for model in (path, causal, named):
            refgpt.load(model, backend="numpy")
    found, called = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert found == (
        logging.INFO,
        "causal mask: each token sees those before it (attn.bias is lower triangular in "
        "every layer that stores it (2), though the model is called gpt-jt-tuned)",
    )
    assert called == (
        logging.WARNING,
        "prefix mask: all tokens of a prompt see each other (no attn.bias says "
        "otherwise, and the model is called GPT-JT-6B-v1)",
    )


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("prefix", [True, False])
def test_the_mask_is_found_in_buffers_of_any_dtype(tmp_path, dtype, prefix):
    """As checkpoints have it: GPT-J's bool, GPT-JT's uint8, and what casting a whole checkpoint makes of them."""
    mask = "prefix" if prefix else "causal"
    written = write_model(tmp_path, CONFIG, PARAMS, prefix=prefix, mask_dtype=dtype)
    assert refgpt.load(written, backend="numpy").mask == mask
    for told in ("causal", "prefix"):
        assert refgpt.load(written, backend="numpy", mask=told).mask == told


def test_the_mask_can_be_told(path, prefix_path, caplog):
    with caplog.at_level(logging.INFO, "refgpt"):
        causal = refgpt.load(prefix_path, backend="numpy", mask="causal")
        assert caplog.text == ""
        prefix = refgpt.load(path, backend="numpy", mask="prefix")
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert (causal.mask, prefix.mask) == ("causal", "prefix")
    greedy = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    assert causal.generate(IDS, **greedy).ids != prefix.generate(IDS, **greedy).ids


def test_stream_takes_one_prompt_and_complains_at_the_call(path):
    model = refgpt.load(path, backend="numpy")
    with pytest.raises(refgpt.GenerationError, match="stream: takes one prompt; got a list of 2"):
        model.stream(["a", "b"])
    with pytest.raises(refgpt.GenerationError, match="temperature"):
        model.stream("a", temperature=-1)
    with pytest.raises(refgpt.GenerationError, match="truncate='left'"):
        model.stream("a" * 64)
    with pytest.raises(refgpt.GenerationError, match=r"^temprature: there is no such parameter; .*\btemperature,"):
        model.stream("a", temprature=1)


def test_parameters_can_be_kept_and_changed(path):
    model = refgpt.load(path, backend="numpy")
    params = refgpt.GenerationParams(max_new_tokens=5, seed=1, ignore_eos=True)
    assert model.generate("a", params) == model.generate("a", max_new_tokens=5, seed=1, ignore_eos=True)
    changed = model.generate("a", params, max_new_tokens=7)
    assert len(changed.ids) == 7 and changed.text == "".join(model.stream("a", params, max_new_tokens=7))
    with pytest.raises(refgpt.GenerationError, match=r"^params: cannot be used; got 5; wanted Gen"):
        model.generate("a", 5)
    with pytest.raises(refgpt.GenerationError, match="an empty list"):
        model.generate([], params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_cannot_be_used_are_refused(path, backend):
    model = refgpt.load(path, backend=backend, threads=1)
    for ids in ([], [61], [-1], [0.5], [0] * 65, [[1]]):
        for ask in (model.logits, model.trace):
            with pytest.raises(refgpt.GenerationError):
                ask(ids)
    for prefix_len in (-1, 3, 1.0):
        with pytest.raises(refgpt.GenerationError, match="prefix_len"):
            model.logits([1, 2], prefix_len)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("backend", "cuda", "'c', 'numpy'"),
        ("dtype", "f64", "None, 'f32', 'f16', 'bf16'"),
        ("dtype", "float8", "'f16'"),
        ("mask", "bidirectional", "'auto', 'causal', 'prefix'"),
        ("threads", 0, "whole number"),
        ("threads", True, "whole"),
        ("threads", "2", "whole"),
        ("kv_dtype", "bf16", "None, 'f32', 'f16'"),
        ("dtype", ["f16"], "'f16'"),
        ("compute", "f16", "None, 'f32', 'bf16'"),
        ("compute", "q8", "None, 'f32', 'bf16'"),
        ("compute", 16, "None, 'f32', 'bf16'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(name, value, wanted):
    with pytest.raises(refgpt.RefgptError, match=f"^{name}: cannot be used; got .*wanted .*{wanted}"):
        refgpt.load("/nowhere", **{name: value})


@pytest.mark.parametrize(
    "given, kept",
    [
        ("float16", "f16"),
        ("fp16", "f16"),
        ("half", "f16"),
        ("Float32", "f32"),
        (np.float16, "f16"),
        (np.float32, "f32"),
        (np.dtype("float16"), "f16"),
        (np.dtype(">f4"), "f32"),
        ("int8", "q8"),
        ("int4", "q4"),
        ("f16", "f16"),
        (None, None),
    ],
)
def test_dtypes_are_understood_by_their_other_names(path, given, kept):
    model = refgpt.load(path, dtype=given, kv_dtype=given if kept in ("f16", "f32") else None)
    assert model.dtype == kept and (kept not in ("f16", "f32") or model.kv_dtype == kept)


def test_float64_is_understood_where_it_can_be_used(path):
    for given in ("float64", "double", np.float64):
        assert refgpt.load(path, backend="numpy", dtype=given).dtype == "f64"
        with pytest.raises(refgpt.RefgptError, match=r"^dtype: cannot be used; got 'f64'"):
            refgpt.load(path, dtype=given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_rounds_the_matrices(path, backend):
    model = refgpt.load(path, backend, "bfloat16")
    assert model.dtype == "bf16" and model.compute == "f32"
    kept, stored = dict(model.engine.kept().items()), dict(PARAMS.items())
    assert kept["wte"].dtype == BFLOAT16 and kept["blocks.0.w_in"].dtype == BFLOAT16
    for name, leaf in stored.items():
        off = np.abs(widen(kept[name]) - widen(leaf))
        assert (off <= (np.abs(widen(leaf)) * 2**-8 if leaf.ndim == 2 else 0)).all()
    assert np.abs(model.logits([1, 2, 3]) - refgpt.load(path, backend).logits([1, 2, 3])).max() > 0


def test_arithmetic_in_bfloat16(path):
    model = refgpt.load(path, dtype="bf16", compute="bfloat16", threads=1)
    wide = refgpt.load(path, dtype="bf16", threads=1)
    assert (model.compute, wide.compute) == ("bf16", "f32")
    assert model.verify([1, 2, 3]).first_broken is None
    assert 0 < np.abs(model.logits([1, 2, 3]) - (rows := wide.logits([1, 2, 3]))).max() < rows.std()
    assert model.engine.identity() != wide.engine.identity()
    assert refgpt.load(path, dtype="bf16", compute="f32", threads=1).engine.identity() == wide.engine.identity()
    rounding = refgpt.load(path, dtype="f32", compute="bf16", threads=1)
    assert rounding.verify([1, 2, 3]).first_broken is None
    kept, exact = rounding.engine.kept().blocks[0].w_in, rounding.engine.masters().blocks[0].w_in
    assert kept.kind == "bf16" and (widen(exact) == widen(PARAMS.blocks[0].w_in)).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"^compute: is not for weights in f16; got .* in f16; load with dtype='bf16' or dtype='f32' \(--dtype"),
        ({"dtype": "f16"}, "^compute: is not for weights in f16; got 'bf16' and dtype 'f16'"),
        ({"backend": "numpy"}, "^compute: is for the C kernels; got 'bf16' and backend 'numpy'"),
    ],
)
def test_arithmetic_in_bfloat16_needs_other_weights_than_float16_and_the_kernels(path, options, said):
    with pytest.raises(refgpt.RefgptError, match=said):
        refgpt.load(path, compute="bf16", **options)


@pytest.mark.parametrize("given", [np.int32, np.array(["f16"]), np.zeros(3), 16, b"f16", str, "float", "<f2,"])
def test_what_is_no_dtype_for_weights_is_refused(path, given):
    with pytest.raises(refgpt.RefgptError, match=r"^dtype: cannot be used"):
        refgpt.load(path, dtype=given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_not_finite_are_refused(tmp_path, backend):
    spoilt = dataclasses.replace(PARAMS, b_head=PARAMS.b_head.copy())
    spoilt.b_head[7] = np.nan
    with pytest.raises(refgpt.CheckpointError, match=r"model.safetensors, tensor 'lm_head.bias': .*NaN"):
        refgpt.load(write_model(tmp_path, CONFIG, spoilt), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_beyond_float16_are_refused_as_float16(tmp_path, backend):
    huge = dataclasses.replace(random_params(CONFIG, 0), wte=np.full_like(PARAMS.wte, 7e4, np.float32))
    write_model(tmp_path, CONFIG, huge)
    where = f"{re.escape(str(tmp_path))}/model.safetensors, tensor 'transformer.wte.weight'"
    with pytest.raises(refgpt.CheckpointError, match=rf"^{where}: .*f16.*65504.*f32"):
        refgpt.load(tmp_path, backend=backend, dtype="f16")


@pytest.mark.parametrize("dtype", [None, "f32", "f16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_beyond_float32_are_refused_but_as_float64(tmp_path, backend, dtype):
    huge = PARAMS.map(lambda name, leaf: leaf.astype(np.float64))
    huge.blocks[1].b_in[3] = 1e39
    write_model(tmp_path, CONFIG, huge)
    said = r"tensor 'transformer.h.1.mlp.fc_in.bias': holds numbers that f32 cannot; .*3.40282e\+38; .*dtype='f64'"
    with pytest.raises(refgpt.CheckpointError, match=said):
        refgpt.load(tmp_path, backend=backend, dtype=dtype)
    assert refgpt.load(tmp_path, backend="numpy", dtype="f64").params().blocks[1].b_in[3] == 1e39


def test_nothing_there(tmp_path):
    with pytest.raises(refgpt.RefgptError, match="no such"):
        refgpt.load(tmp_path / "absent", backend="numpy")


def test_progress_counts_up_to_everything(path):
    seen = []
    refgpt.load(path, progress=lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done) and {done[-1]} == set(totals) == {sum(leaf.nbytes for _, leaf in PARAMS.items())}


def test_repr_names_what_was_loaded(path):
    shown = repr(refgpt.load(path, backend="numpy", dtype="f16"))
    for part in (str(path), "numpy", "f16", "causal", "n_layer=2"):
        assert part in shown


def test_the_default_model_is_looked_for_in_the_package_or_beside_it():
    assert refgpt.default_model_path().parts[-2:] in {("refgpt", "default_model"), ("weights", "default")}


@pytest.mark.parametrize("open_it", [refgpt.load, load_tokenizer, find_tokenizer, open_checkpoint])
def test_what_is_no_path_is_refused(open_it):
    with pytest.raises(refgpt.RefgptError, match=r"^(path|directory): cannot be used; got 123; wanted a path$"):
        open_it(123)


def test_bytes_are_not_taken_for_ids(path):
    model = refgpt.load(path, backend="numpy")
    for prompt in (b"\x05", bytearray(b"\x05"), [b"\x05"]):
        with pytest.raises(refgpt.GenerationError, match=r"got bytes|got bytearray"):
            model.generate(prompt)


@pytest.fixture
def wide(tmp_path):
    """A model whose tokenizer has one token beyond the last row of the head, behind a gap."""
    config = tiny_config(eos_id=0, bos_id=0, n_vocab=70)
    path = write_tokenizer(write_model(tmp_path / "wide", config, random_params(config, seed=2)))
    (path / "added_tokens.json").write_text(json.dumps({"<fits>": 69, "<wide>": 75}))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_a_row_are_never_drawn_and_refused_in_a_text(wide, backend, caplog):
    model = refgpt.load(wide, backend=backend)
    assert "added_tokens.json: 1 of the tokens have an id beyond the model's 70 rows" in caplog.text
    for params in ({"temperature": 0}, {"seed": 1, "temperature": 5.0, "logprobs": 80}, {"seed": 2, "top_k": 69}):
        got = model.generate(["ab<fits>", ""], max_new_tokens=9, ignore_eos=True, repetition_penalty=1.5, **params)
        assert all(model.tokenizer.exists[n] and n < 70 for one in got for n in one.ids)
    refused = [
        lambda: model.generate("a<wide>", max_new_tokens=1),
        lambda: list(model.stream("a<wide>", max_new_tokens=1)),
        lambda: model.score("a", ["b<wide>"]),
        lambda: model.classify("a<wide>", ["b", "c"], "{text} {label}"),
        lambda: model.trace("<wide>"),
    ]
    for use in refused:
        with pytest.raises(refgpt.RefgptError, match="no row for one of its tokens; got '<wide>', which has"):
            use()
    with pytest.raises(refgpt.RefgptError, match="does not exist in this vocabulary"):
        model.generate([3, 75], max_new_tokens=1)


def test_the_tokenizer_of_another_model_is_refused(wide):
    (wide / "added_tokens.json").unlink()
    vocab = json.loads((wide / "vocab.json").read_text())
    (wide / "vocab.json").write_text(json.dumps({token: n + 70 for token, n in vocab.items()}))
    with pytest.raises(refgpt.RefgptError, match="the model has no row for any token"):
        refgpt.load(wide)


@pytest.mark.parametrize(
    ("config", "generation", "want"),
    [
        ([7, 9, 7], None, (7, 9)),
        ([7], None, (7,)),
        ([], None, ()),
        (7, {}, (7,)),
        (7, {"eos_token_id": None}, (7,)),
        (7, {"eos_token_id": 9}, (9,)),
        (7, {"eos_token_id": [9, 3]}, (9, 3)),
        (None, {"eos_token_id": [9, 3]}, (9, 3)),
        ([7, 9], {"eos_token_id": 3}, (3,)),
        (7, {"eos_token_id": []}, ()),
        (7, {"eos_token_id": [0]}, (0,)),
        ([500, 9], None, (9,)),
        (7, {"eos_token_id": [9, 500]}, (9,)),
    ],
)
@pytest.mark.parametrize("to", ["as it is", "refgpt", "hf", "gguf", "gguf, then hf"])
def test_the_ids_that_end_a_text_come_from_both_files_and_are_carried_along(config, generation, want, to, tmp_path):
    path = write_model(tmp_path / "a", CONFIG, PARAMS)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"eos_token_id": config}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 5, **generation}))
    for n, target in enumerate([] if to == "as it is" else to.split(", then ")):
        convert(*open_model(path), tmp_path / str(n), target)
        path = tmp_path / str(n)
    found = open_checkpoint(path).config
    assert found.eos_ids == want and found.bos_id == (0 if generation is None else 5)


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ("[]", "not an object"),
        ('{"eos_token_id": "7"}', "eos_id: cannot be used; got '7'"),
        ('{"eos_token_id": -1}', "eos_id: cannot be used; got -1"),
        ('{"eos_token_id": [7, true]}', "eos_id: cannot be used; got True"),
        ('{"bos_token_id": 1.5}', "bos_id: cannot be used; got 1.5"),
        (json.dumps({"eos_token_id": [1] * 65}), "eos_token_id is absurdly long; got 65 ids"),
    ],
)
def test_a_spoilt_generation_config(generation, words, tmp_path):
    path = write_model(tmp_path / "a", CONFIG, PARAMS)
    (path / "generation_config.json").write_text(generation)
    with pytest.raises(refgpt.RefgptError, match=words) as caught:
        open_checkpoint(path)
    assert "generation_config.json" in str(caught.value)
    (path / "generation_config.json").unlink()
    (path / "generation_config.json").symlink_to("gone")
    with pytest.raises(refgpt.RefgptError, match=r"generation_config\.json: this is a link that leads nowhere"):
        open_checkpoint(path)
