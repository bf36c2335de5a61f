"""The model for lm-eval, through lm-eval's own evaluator: as its Hugging Face backend. Needs the extra "eval"."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from refgpt._common.errors import RefgptError
from refgpt.cli import main
from tests.helpers.evaluation_models import GOLDENS, MODELS, write_named

pytest.importorskip("lm_eval", reason='needs the extra "eval"')

FOUND = json.loads(GOLDENS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """lm-eval's data sets come from files, and what it caches goes to a directory of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        yield


@pytest.fixture(scope="module", params=MODELS)
def named(request, offline, tmp_path_factory):
    from refgpt.evaluation.lm_eval import RefgptLM

    path = write_named(request.param, tmp_path_factory.mktemp("model"))
    return RefgptLM(str(path), threads=2, batch_size=1, device="cpu"), FOUND[request.param]


def asked(rows):
    """Requests as lm-eval makes them, as far as a model looks at them."""
    return [SimpleNamespace(args=tuple(given) if isinstance(given, list) else (given,)) for given, _ in rows]


def test_log_likelihoods(named):
    lm, found = named
    got = lm.loglikelihood(asked(found["loglikelihood"]))
    for (pair, want), (value, greedy) in zip(found["loglikelihood"], got, strict=True):
        assert value == pytest.approx(want[0], abs=2e-3) and greedy == want[1], pair


def test_rolling(named):
    lm, found = named
    got = lm.loglikelihood_rolling(asked(found["rolling"]))
    assert got == pytest.approx([want for _, want in found["rolling"]], abs=2e-3)


def test_texts(named):
    lm, found = named
    assert lm.generate_until(asked(found["generate"])) == [want for _, want in found["generate"]]


def test_a_shorter_context(offline, tmp_path):
    """``max_length`` makes a model of a long context answer as one of a short context."""
    from refgpt.evaluation.lm_eval import RefgptLM

    path = write_named("three layers", tmp_path)
    long = RefgptLM(str(path), max_length=40)
    assert long.max_length == 40
    text = "The cat sat by the mill and looked at the water." * 6
    (pair,) = long.loglikelihood([SimpleNamespace(args=(text, " then"))])
    ids = long.model.tokenizer.encode(text)[-(41 - len(long.model.tokenizer.encode(" then"))) :]
    (want,) = long.model.score(ids, [" then"])
    assert pair[0] == pytest.approx(want.sum(), abs=1e-12)
    assert long.generate_until([SimpleNamespace(args=(text, {"until": ["\n"], "max_gen_toks": 4}))])[0]


def test_the_evaluator_gives_the_metrics_of_the_hugging_face_backend(offline, tmp_path):
    """From requests to metrics with lm-eval's own tasks, and without PyTorch."""
    from lm_eval import simple_evaluate

    import refgpt.evaluation.lm_eval
    from tests.helpers.lm_eval_tasks import handmade_tasks

    assert refgpt.evaluation.lm_eval.RefgptLM
    path = write_named("three layers", tmp_path / "model")
    manager, names = handmade_tasks(tmp_path)
    out = simple_evaluate(
        model="refgpt",
        model_args=f"pretrained={path},threads=2",
        tasks=list(names.values()),
        task_manager=manager,
        bootstrap_iters=0,
    )
    for ours, theirs in names.items():
        for key, value in FOUND["tasks"][ours]["metrics"].items():
            assert out["results"][theirs][f"{key},none"] == pytest.approx(value, rel=1e-4), (ours, key)


def test_lm_evals_own_command(offline, monkeypatch):
    """It is given the arguments as they are, and finds the model registered."""
    import lm_eval.__main__
    from lm_eval.api.registry import model_registry

    seen = []
    monkeypatch.setattr(
        lm_eval.__main__, "cli_evaluate", lambda: seen.append((sys.argv[:], "refgpt" in model_registry))
    )
    before = sys.argv[:]
    assert main(["lm-eval", "--tasks", "piqa", "-L", "3", "--model_args", "dtype=q8"]) == 0
    given = ["lm-eval", "run", "--model", "refgpt", "--tasks", "piqa", "-L", "3", "--model_args", "dtype=q8"]
    assert seen == [(given, True)] and sys.argv == before


def test_the_built_in_models_are_still_there(offline):
    from lm_eval.api.registry import get_model, model_registry

    import refgpt.evaluation.lm_eval

    assert get_model("refgpt") is refgpt.evaluation.lm_eval.RefgptLM
    assert {"hf", "vllm", "dummy"} <= set(model_registry.keys())


def test_arguments(offline, tmp_path):
    from refgpt.evaluation.lm_eval import RefgptLM

    path = str(write_named("short context", tmp_path))
    with pytest.raises(RefgptError, match="model_args: there is no such argument; got pretrainde; wanted pretrained"):
        RefgptLM(pretrainde=path)
    with pytest.raises(RefgptError, match="max_length: cannot be used; got 41"):
        RefgptLM(path, max_length=41)
    with pytest.raises(RefgptError, match="protocol: cannot be used"):
        RefgptLM(path, protocol="gpt-3")
    lm = RefgptLM(path, mask="prefix", dtype="q4", backend="c")
    assert lm.get_model_info() == {"model_dtype": "q4", "model_compute": "f32", "model_mask": "prefix"}
    assert "/" not in lm.tokenizer_name
    with pytest.raises(RefgptError, match="max_gen_toks: leaves no room"):
        lm.generate_until([SimpleNamespace(args=("x", {"max_gen_toks": 40}))])
    with pytest.raises(RefgptError, match="num_beems: there is no such parameter"):
        lm.generate_until([SimpleNamespace(args=("x", {"max_gen_toks": 4, "num_beems": 2}))])
    bos = RefgptLM(path, add_bos_token=True)
    (one,) = bos.loglikelihood([SimpleNamespace(args=("The", " mill"))])
    (two,) = lm.model.score([0, *lm.model.tokenizer.encode("The")], [" mill"])
    assert one[0] != two.sum()  # other weights
    (want,) = bos.model.score([0, *bos.model.tokenizer.encode("The")], [" mill"])
    assert one[0] == pytest.approx(want.sum(), abs=1e-12)
