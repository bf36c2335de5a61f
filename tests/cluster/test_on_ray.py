"""Workers as actors of Ray, on this machine: the same bits as in one process, and what becomes of a lost worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refgpt import training
from refgpt._common.errors import RefgptError
from refgpt.cluster import Rules, Worker, parse_compression, parse_sync, train_locally
from refgpt.cluster.on_ray import Crew, Patience, train_on_ray
from refgpt.cluster.saving import read_round
from tests.helpers.training_models import batch_of, model_in

ray = pytest.importorskip("ray", reason='needs the extra "ray"')

RATES = training.schedule("cosine", 1e-2, 2, 12)
RULES = Rules(parse_compression("topk:0.1,bits:2"), seed=3)
SOON = 0.5  # seconds for a late worker, which sleeps much longer
SYNC, EACH_STEP = parse_sync("every:3"), parse_sync("every:1")


@pytest.fixture(scope="module")
def cluster():
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": os.pathsep.join([root, *sys.path]), "OMP_NUM_THREADS": "1"}
    ray.init(
        "local",  # not the cluster of another test
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


def maker(directory, sabotage=None, kinds=None):
    """Makes workers whose models lie in ``directory``; ``sabotage(worker, step)`` is called before each step.

    ``kinds`` has the class of each worker that is no plain ``Worker``.
    """

    def batches(worker):
        def of_step(step):
            if sabotage is not None:
                sabotage(worker, step)
            return [batch_of(2, seed=1000 * worker + step % 4)]

        return of_step

    def make(worker):
        place = Path(directory) / f"{worker}-{os.getpid()}"
        place.mkdir(parents=True)
        trainer = training.Trainer(model_in(place, backend="c", threads=1))
        (place / "up").touch()
        return (kinds or {}).get(worker, Worker)(worker, trainer, batches(worker), RULES.compression)

    return make


def alone(directory, n_workers):
    """The same in one process."""
    directory.mkdir(exist_ok=True)
    make = maker(directory)
    workers = [make(worker) for worker in range(n_workers)]
    batches = [worker._batches for worker in workers]
    *_, (report, trainer) = train_locally(lambda i: workers[i].trainer, batches, RATES, SYNC, RULES)
    return report, trainer.weights


def same(one, other):
    return all((one[name] == other[name]).all() for name in one)


def wait_for(condition):
    """Wait until something has happened in another process."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it has not happened")


def test_the_bits_are_those_of_one_process_and_a_cut_off_run_goes_on(cluster, tmp_path):
    (tmp_path / "alone").mkdir()
    report, wanted = alone(tmp_path / "alone", 2)
    *_, (found, weights) = train_on_ray(maker(tmp_path / "ray"), 2, RATES, SYNC, RULES)
    assert same(weights, wanted) and found.loss == report.loss and found.sent == report.sent

    progress = tmp_path / "progress"
    run = train_on_ray(maker(tmp_path / "first"), 2, RATES, SYNC, RULES, progress=progress)
    first, _ = next(run)
    assert read_round(progress) == 0  # a round is kept only when its report has been: no report is ever missing
    second, _ = next(run)
    assert read_round(progress) == 1
    run.close()
    rest = [r.round for r, _ in train_on_ray(maker(tmp_path / "then"), 2, RATES, SYNC, RULES, progress=progress)]
    assert [first.round, second.round, *rest] == [0, 1, 1, 2, 3] and read_round(progress) == 4


def test_progress_is_kept_after_so_many_steps_and_at_the_end(cluster, tmp_path):
    kept, progress = [], tmp_path / "progress"
    run = train_on_ray(maker(tmp_path / "ray"), 2, RATES, SYNC, RULES, progress=progress, save_every=7)
    for _ in run:  # rounds of 3 steps: what is on the disk while a round is reported
        kept.append(read_round(progress))
    assert kept == [0, 0, 0, 3] and read_round(progress) == 4  # after 9 of 12 steps, and at the end


def test_weights_are_sent_only_to_workers_that_have_others(cluster, tmp_path, monkeypatch):
    put, sent = ray.put, []

    def counted(value):
        sent.append(type(value))
        return put(value)

    monkeypatch.setattr(ray, "put", counted)
    (tmp_path / "model").mkdir()
    model = model_in(tmp_path / "model", backend="c", threads=1)
    weights = {name: w.copy() for name, w in training.Trainer(model).weights.items()}
    *_, (_, one) = train_on_ray(maker(tmp_path / "same"), 2, RATES, SYNC, RULES, weights=weights)
    assert dict not in sent and bytes in sent
    _, wanted = alone(tmp_path / "alone", 2)
    assert same(one, wanted)

    other = {name: w + np.float32(0.01) for name, w in weights.items()}
    *_, (_, two) = train_on_ray(maker(tmp_path / "other"), 2, RATES, SYNC, RULES, weights=other)
    assert sent.count(dict) == 1 and not same(one, two)


def test_a_killed_worker_is_replaced_and_the_others_go_on(cluster, tmp_path):
    once = tmp_path / "killed"

    def kill(worker, step):
        if worker == 1 and step == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    counted = []
    for report, _ in train_on_ray(maker(tmp_path / "ray", kill), 3, RATES, EACH_STEP, RULES):
        counted.append(sorted(message.worker for message in report.result.messages))
        if report.round == 1:
            wait_for(lambda: len(list(tmp_path.glob("ray/1-*/up"))) == 2)
    assert once.exists() and counted[0] == [0, 1, 2] and counted[1] == [0, 2]
    assert [0, 1, 2] in counted[2:]


def test_a_worker_that_hangs_is_left_behind_and_comes_back(cluster, tmp_path):
    asleep, awake = tmp_path / "asleep", tmp_path / "awake"

    def sleep(worker, step):
        if worker == 0 and step and not asleep.exists():
            asleep.write_text(str(step))
            time.sleep(3)
            awake.touch()
        elif awake.exists():
            time.sleep(0.1)  # the rounds that are left last longer than what worker 0 has still to do

    counted = []
    patience = Patience(quorum=0.5, deadline=SOON)
    for report, _ in train_on_ray(maker(tmp_path / "ray", sleep), 3, RATES, EACH_STEP, RULES, patience=patience):
        counted.append({message.worker for message in report.result.messages})
        if asleep.exists() and report.round == int(asleep.read_text()):
            wait_for(awake.exists)
    hung = int(asleep.read_text())  # a round has one step
    assert 0 not in counted[hung] and any(0 in workers for workers in counted[hung + 1 :])


def test_a_worker_whose_gradients_are_not_finite_is_left_out(cluster, tmp_path, caplog):
    def fail(worker, step):
        if worker == 2:
            raise RefgptError("the gradient is not a number")

    reports = [report for report, _ in train_on_ray(maker(tmp_path / "ray", fail), 3, RATES, SYNC, RULES)]
    assert len(reports) == 4
    assert all(sorted(m.worker for m in report.result.messages) == [0, 1] for report in reports)
    assert any("worker 2" in message and "not a number" in message for message in caplog.messages)


class Replaying(Worker):
    """A worker that sends its first message again and again."""

    def train(self, round_, steps, rates, seed):
        message = super().train(round_, steps, rates, seed)
        self.first = getattr(self, "first", message)
        return self.first


def test_a_worker_that_replays_its_message_is_named_and_left_out(cluster, tmp_path, caplog):
    make = maker(tmp_path / "ray", kinds={1: Replaying})
    reports = [report for report, _ in train_on_ray(make, 3, RATES, SYNC, RULES)]
    assert [sorted(report.result.refused) for report in reports] == [[], [1], [1], [1]]
    assert sum("worker 1" in message and "is of another round" in message for message in caplog.messages) == 3


class Telling(Worker):
    """A worker that answers with something other than a message."""

    def train(self, round_, steps, rates, seed):
        if steps.start:
            raise RefgptError(" ")
        return 7


def test_a_worker_that_answers_with_nonsense_ends_no_training(cluster, tmp_path):
    make = maker(tmp_path / "ray", kinds={1: Telling})
    reports = [report for report, _ in train_on_ray(make, 2, RATES, SYNC, RULES)]
    assert [sorted(report.result.refused) for report in reports] == [[1], [], [], []]
    assert all([message.worker for message in report.result.messages] == [0] for report in reports)


def test_messages_of_which_none_can_be_used_end_the_training(cluster, tmp_path):
    make = maker(tmp_path / "ray", kinds={0: Telling})
    with pytest.raises(RefgptError, match=r"no worker sent anything usable.*worker 0.*is no message"):
        list(train_on_ray(make, 1, RATES, SYNC, RULES, patience=Patience(lost=0.5)))


def test_workers_that_cannot_load_their_model_say_why(cluster, tmp_path, caplog):
    plain = maker(tmp_path / "ray")

    def make(number, failing=(0, 1)):
        if number in failing:
            raise RefgptError("there is no model", where="a place")
        return plain(number)

    with pytest.raises(RefgptError, match=r"worker [01], a place: there is no model"):
        list(train_on_ray(make, 2, RATES, SYNC, RULES))
    reports = [r for r, _ in train_on_ray(lambda number: make(number, [1]), 2, RATES, SYNC, RULES)]
    assert all([m.worker for m in report.result.messages] == [0] for report in reports)
    assert "worker 1: a place: there is no model" in caplog.messages


def test_hosts_with_another_version_of_refgpt_do_not_train(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("refgpt.cluster.on_ray.__version__", "0.0.1")  # here, not in the workers' processes
    with pytest.raises(RefgptError, match=r"worker [01]: its host has another version.* wanted 0\.0\.1; install"):
        list(train_on_ray(Unreadable(), 2, RATES, SYNC, RULES))


class Unreadable:
    """Cannot be read in another process, like what another version of refgpt does not have."""

    def __reduce__(self):
        return getattr, (training, "no such name")


def test_a_worker_that_cannot_load_is_given_no_weights(cluster, tmp_path):
    plain = maker(tmp_path / "ray")

    def make(number):
        if number:
            raise RefgptError("there is no model")
        return plain(number)

    received = {report.received for report, _ in train_on_ray(make, 2, RATES, SYNC, RULES)}
    one = {report.received for report, _ in train_on_ray(maker(tmp_path / "one"), 1, RATES, SYNC, RULES)}
    assert received == one


def test_fewer_workers_than_the_quorum_begin_if_no_more_start():
    crew = Crew.__new__(Crew)
    crew._actors, crew._busy, crew._faults, crew._look = {0: None, 1: None, 2: None}, {1: None}, {}, time.sleep
    patience = Patience(quorum=1.0, start=0.2)
    crew._faults = {2: RefgptError("there is no model")}
    crew.gather(patience)
    crew._busy = {0: None, 1: None}
    with pytest.raises(RefgptError, match="no worker has started"):
        crew.gather(patience)


def test_too_few_answers_end_the_training_after_a_while(cluster, tmp_path):
    def hang(worker, step):
        if worker:
            time.sleep(60)

    patience = Patience(quorum=1.0, lost=8)
    with pytest.raises(RefgptError, match="only 1 of 2 workers answer"):
        list(train_on_ray(maker(tmp_path / "ray", hang), 2, RATES, SYNC, RULES, patience=patience))


def test_weights_that_a_worker_takes_are_counted(cluster, tmp_path):
    weights = training.Trainer(model_in(_made(tmp_path / "model"), backend="c", threads=1)).weights
    other = {name: w + np.float32(0.01) for name, w in weights.items()}
    n_bytes = 4 * sum(w.size for w in weights.values())
    totals = []
    for start in (weights, other):
        *_, (report, _) = train_on_ray(maker(tmp_path / f"ray{len(totals)}"), 2, RATES, SYNC, RULES, weights=start)
        totals.append(report.received)
    assert totals[1] - totals[0] == pytest.approx(n_bytes, rel=0.02)  # updates differ by a few bytes


def _made(directory):
    directory.mkdir()
    return directory


def test_nobody_answers(cluster, tmp_path):
    def fail(worker, step):
        raise RefgptError("no data")

    with pytest.raises(RefgptError, match="no worker answers"):
        list(train_on_ray(maker(tmp_path / "ray", fail), 2, RATES, SYNC, RULES, patience=Patience(lost=2)))


def test_without_a_cluster_there_is_one_clear_error(tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(RefgptError, match="there is no Ray cluster"):
        next(train_on_ray(maker(tmp_path), 2, RATES, SYNC, RULES))
