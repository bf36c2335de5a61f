"""How benchmarks.frontier searches learning rates and keeps its runs; its trainings themselves are run by CI."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

import refgpt
from benchmarks.frontier import METHODS, Runs, Setting, parse_method, search, setting_of, sparse
from benchmarks.frontier_report import beyond, frontier, results, table
from refgpt._common.errors import RefgptError

INT4, TOP = "random:0.04, int4", "random:0.04, topk:0.03,bits:2"
#: The best rate of each method.
BEST = {"synchronous": 1e-3, INT4: 4e-3, TOP: 2.5e-4}
SENT = {"synchronous": 1e10, INT4: 1e8, TOP: 1e7}
TOLD = {"steps": "600", "base": "x"}


def run(method, rate, seed):
    """A training whose loss is a parabola over the logarithm of the rate; it diverges at large rates."""
    one = {"method": method, "rate": rate, "seed": seed, "sent": SENT[method], "rounds": 24}
    loss = None if rate > 0.01 else 2.5 + np.log(rate / BEST[method]) ** 2 + 0.01 * seed
    return {**one, "choosing": loss, "loss": loss}


class Trains:
    """Runs what is asked for, and counts; it is killed after some runs."""

    def __init__(self, most=1000):
        self.asked, self._most = [], most

    def __call__(self, wanted):
        for one in wanted:
            if len(self.asked) == self._most:
                raise KeyboardInterrupt
            self.asked.append(one)
            yield run(*one)


def find(path, train, wider=3, rates=(5e-4, 1e-3, 2e-3), n_seeds=3):
    runs = Runs(TOLD, path)
    search(runs, list(BEST), list(rates), n_seeds, wider, train)
    return runs


def test_each_method_is_tuned_with_one_seed_and_run_with_the_others_at_its_best_rate(tmp_path):
    train = Trains()
    runs = find(tmp_path / "runs.json", train)
    rates = {method: sorted(r for m, r, seed in train.asked if m == method and not seed) for method in BEST}
    assert rates["synchronous"] == [5e-4, 1e-3, 2e-3]
    assert rates[INT4] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3] and rates[TOP] == [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3]
    others = {(m, r, seed) for m, r, seed in train.asked if seed}
    assert others == {(method, rate, seed) for method, rate in BEST.items() for seed in (1, 2)}
    assert len(set(train.asked)) == len(train.asked)
    sync, int4, top = results(runs.done)
    assert [one.method for one in (sync, int4, top)] == list(BEST) and not any(one.at_edge for one in (sync, int4, top))
    assert sync.ratio == int4.ratio == 1 and int4.less == 100 and top.less == 1000 and len(top.losses) == 3


def test_a_best_rate_at_the_edge_is_marked(tmp_path):
    runs = find(tmp_path / "runs.json", Trains(), wider=0)
    assert {one.method: one.at_edge for one in results(runs.done)} == {"synchronous": False, INT4: True, TOP: True}
    assert beyond(runs.done, INT4) == 4e-3 and beyond(runs.done, TOP) == 2.5e-4
    told = table(runs.done, "3.1234")
    assert f"| {INT4} | 24 | 0.002* |" in told and "| synchronous | 24 | 0.001 |" in told
    assert told.endswith("No rate beyond this one was tried.") and "| before the training | | | 3.1234 |" in told


@pytest.mark.parametrize("n", [0, 1, 7, 14])
def test_a_search_that_was_killed_goes_on_and_repeats_nothing(tmp_path, n):
    first, then = Trains(n), Trains()
    with pytest.raises(KeyboardInterrupt):
        find(tmp_path / "runs.json", first)
    assert len(json.loads((tmp_path / "runs.json").read_text())["runs"]) == n
    runs = find(tmp_path / "runs.json", then)
    whole = find(tmp_path / "whole.json", Trains())
    assert first.asked + then.asked == [(one["method"], one["rate"], one["seed"]) for one in whole.done]
    assert runs.done == whole.done
    again = Trains()
    find(tmp_path / "runs.json", again)
    assert not again.asked


def test_runs_of_another_base_are_not_mixed(tmp_path):
    find(tmp_path / "runs.json", Trains())
    with pytest.raises(SystemExit, match="another base"):
        Runs({**TOLD, "base": "y"}, tmp_path / "runs.json")


def test_divergence_is_no_result(tmp_path):
    runs = find(tmp_path / "runs.json", Trains(), rates=(1e-3, 4e-3, 0.02))
    assert all(one.rate <= 4e-3 for one in results(runs.done))
    next(one for one in runs.done if one["method"] == TOP and one["seed"] == 2)["loss"] = None
    assert TOP not in [one.method for one in results(runs.done)] and f"{TOP} | | | diverges" in table(runs.done, "3")
    with pytest.raises(SystemExit, match="diverges at every rate"):
        find(None, Trains(), rates=(0.1, 0.2))


def test_the_frontier_has_no_method_that_another_beats_twice(tmp_path):
    found = results(find(tmp_path / "runs.json", Trains()).done)
    assert [one.method for one in frontier(found)] == list(BEST)
    worse = [one for one in found if one.method != INT4]
    assert frontier([*worse, worse[0]])[-1].method == TOP


def test_the_end_of_each_text_is_held_out(tmp_path):
    paths = []
    for i, word in enumerate(("tale ", "sea ")):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(word * 3000)
    arguments = argparse.Namespace(
        texts=paths, model=None, length=16, steps=600, batch=1, compute="f32", optimiser="adamw"
    )
    setting = setting_of(arguments, 4)
    decode = refgpt.load().tokenizer.decode
    for half in setting.held:
        told = decode(half.ids.ravel().tolist())
        assert "tale" in told and "sea" in told
    n_rows = len(setting.rows) + sum(len(half.ids) for half in setting.held)
    assert 0.85 < len(setting.rows) / n_rows < 1


def test_a_method_is_read_from_its_name():
    for name in METHODS:
        parse_method(name)
    how = parse_method("every:20, topk:0.1,bits:1, average variance, nesterov 0.5", seed=3)
    sync, rules = how.sync, how.rules
    assert (str(sync), str(rules.compression), rules.seed) == ("every:20", "topk:0.1,bits:1", 3)
    assert how.average_variance
    assert (rules.outer, rules.outer_lr, rules.outer_momentum) == ("nesterov", 0.7, 0.5)
    assert parse_method("every:20, topk:0.1,bits:1, nesterov 0.5, average variance", seed=3) == how
    plain = parse_method("every:20, int4")
    assert plain.rules.outer == "none" and not plain.average_variance
    for name in (
        "every:20",
        "often, int4",
        "every:20, int4, nesterov",
        "every:20, int4, nesterov 2",
        "every:20, int4,",
    ):
        with pytest.raises(RefgptError):
            parse_method(name)


@pytest.mark.parametrize("name", ["every:1, f16", "every:1, f16, average variance"])
def test_a_method_reaches_the_optimisers_of_the_workers(monkeypatch, name):
    made = []

    def trains(make_trainer, *rest):
        made.append(make_trainer(0))
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.frontier.train_locally", trains)
    setting = Setting(np.zeros((4, 8), int), (), n_workers=4, n_steps=2, batch=1, warmup=1)
    with pytest.raises(KeyboardInterrupt):
        sparse(setting, name, 1e-3, 0, 1)
    assert made[0].optimiser.averaged_over == (4 if "average" in name else 1)
