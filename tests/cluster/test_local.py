"""Training by several workers in one process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from refgpt import training
from refgpt._common.errors import RefgptError
from refgpt.cluster import Rules, parse_compression, parse_sync, train_locally
from refgpt.cluster.coordinator import Coordinator
from refgpt.cluster.messages import read_message
from refgpt.cluster.worker import Worker
from tests.helpers.training_models import batch_of, model_in

RATES = training.schedule("cosine", 1e-2, 2, 12)


def batches_of(worker):
    return lambda step: [batch_of(2, seed=1000 * worker + step % 4)]


def run(tmp_path, n_workers=3, sync="every:3", adapter=False, **rules):
    trainers = []

    def make(worker):
        model = model_in(tmp_path / f"{len(trainers)}-{worker}", backend="c", threads=1)
        if adapter:
            training.new_adapter(model, rank=2, seed=1)
        trainers.append(training.Trainer(model))
        return trainers[-1]

    (tmp_path).mkdir(exist_ok=True)
    for worker in range(n_workers):
        (tmp_path / f"{worker}-{worker}").mkdir(exist_ok=True)
    reports = [
        report
        for report, _ in train_locally(
            make, [batches_of(w) for w in range(n_workers)], RATES, parse_sync(sync), Rules(**rules)
        )
    ]
    return reports, [trainer.weights for trainer in trainers]


def same(one, other):
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("compress", ["none", "int4", "topk:0.1,bits:2", "cocktail"])
def test_all_workers_end_each_round_with_the_same_bits_and_runs_repeat(tmp_path, compress):
    how = {"compression": parse_compression(compress), "seed": 5}
    reports, weights = run(tmp_path / "a", sync="random:0.3", **how)
    assert all(same(weights[0], other) for other in weights[1:])
    again, repeated = run(tmp_path / "b", sync="random:0.3", **how)
    assert same(weights[0], repeated[0])
    assert [r.loss for r in reports] == [r.loss for r in again]
    assert reports[-1].n_steps == len(RATES)


def test_the_loss_goes_down_and_fewer_bytes_are_sent(tmp_path):
    plain, _ = run(tmp_path / "a", sync="every:1")
    sparse, _ = run(tmp_path / "b", sync="every:3", compression=parse_compression("topk:0.1,bits:2"))
    for reports in (plain, sparse):
        assert reports[-1].loss < 0.9 * reports[0].loss
    assert sparse[-1].sent * 60 < plain[-1].sent and sparse[-1].received * 60 < plain[-1].received


def test_one_worker_who_tells_everything_is_the_trainer_alone(tmp_path):
    """Up to rounding: the weights are the base plus a difference, which is rounded once a round."""
    _, (weights,) = run(tmp_path / "a", n_workers=1, sync="every:4")
    model = model_in(tmp_path, backend="c")
    trainer = training.Trainer(model)
    for step, rate in enumerate(RATES):
        trainer.step(batches_of(0)(step), rate)
    for name, w in trainer.weights.items():
        assert np.abs(weights[name] - w).max() <= 3e-5


def test_only_adapters_are_exchanged_where_only_they_are_trained(tmp_path):
    full, _ = run(tmp_path / "a", n_workers=2)
    lora, weights = run(tmp_path / "b", n_workers=2, adapter=True)
    assert lora[-1].sent < full[-1].sent / 3 and same(weights[0], weights[1])
    assert all("lora" in name for name in weights[0])


def test_a_worker_that_comes_back_takes_the_weights_of_all(tmp_path):
    method = parse_compression("topk:0.1,bits:2")
    (tmp_path / "m").mkdir()
    worker = Worker(0, training.Trainer(model_in(tmp_path / "m")), batches_of(0), method)
    worker.train(0, range(3), RATES, 0)
    shared = {name: w + np.float32(0.5) for name, w in worker.trainer.weights.items()}
    worker.take(shared)
    assert same(worker.trainer.weights, shared)
    worker.apply(np.full(worker.layout.n, 0.25, np.float32))
    assert all((w == shared[name] + np.float32(0.25)).all() for name, w in worker.trainer.weights.items())


def test_there_must_be_a_worker():
    with pytest.raises(RefgptError, match="there is no worker"):
        next(train_locally(lambda worker: None, [], RATES, parse_sync("every:1"), Rules()))


def test_weights_that_do_not_fit_are_refused_and_nothing_changes(tmp_path):
    trainer = training.Trainer(model_in(tmp_path))
    before = {name: w.copy() for name, w in trainer.weights.items()}
    first = next(iter(before))
    wrong = [{}, {**before, "more": np.zeros(2)}, {**before, first: np.zeros((1, 1))}]
    wrong.append({**before, first: np.full_like(before[first], np.nan)})
    for weights in wrong:
        with pytest.raises(RefgptError, match=r"missing, unknown or of another shape|not finite"):
            trainer.assign(weights)
        assert same(before, trainer.weights)


def honest_loss(tmp_path, rules, evil):
    """The last loss of three honest workers; a fourth one sends 100 times the opposite of what it has learnt."""
    workers = []
    for number in range(4):
        (tmp_path / str(number)).mkdir(parents=True)
        trainer = training.Trainer(model_in(tmp_path / str(number), backend="c", threads=1))
        workers.append(Worker(number, trainer, batches_of(number), rules.compression))
    coordinator = Coordinator(workers[0].trainer.weights, rules)
    for i, steps in enumerate(parse_sync("every:2").rounds(len(RATES), 0)):
        answers = {w.number: w.train(i, steps, RATES, rules.seed_of(i, w.number)) for w in workers}
        if evil:
            found = read_message(answers[3], 3, i, coordinator.layout)
            difference = np.frombuffer(found.payload, np.float32)
            forged = dataclasses.replace(found, payload=(np.float32(-100) * difference).tobytes())
            answers[3] = forged.to_bytes(coordinator.layout)
        result = coordinator.close(answers)
        for worker in workers:
            worker.apply(coordinator.read_update(result.update, i))
    return float(np.mean([message.loss for message in result.messages[:3]]))


def test_a_malicious_worker_cannot_undo_the_training_if_the_rules_say_so(tmp_path):
    honest = honest_loss(tmp_path / "honest", Rules(), evil=False)
    assert honest_loss(tmp_path / "plain", Rules(), evil=True) > 2 * honest
    for rules in (Rules(max_ratio=1.0), Rules(trim=1)):
        assert honest_loss(tmp_path / repr(rules.trim), rules, evil=True) < 1.15 * honest
