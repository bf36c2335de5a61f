"""Which hosts a pool uses, and when it gives up: with doubles of hosts and of the clock."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import refgpt
from refgpt import GenerationParams
from refgpt._common.errors import RefgptError
from refgpt._common.record_file import RecordFile
from refgpt.batches.batch import batch_identity, settings_of, template_of
from refgpt.batches.journal import Journal
from refgpt.batches.lines import Lines
from refgpt.batches.running import Record
from refgpt.cli.host_options import load_options
from refgpt.cluster import hosts
from refgpt.cluster.answering import EvaluationWork, HostBatch, HostEvaluation, reading_of
from refgpt.cluster.connect import Patience
from refgpt.cluster.hosts import HostPool
from refgpt.generation.identity import identity_digest, model_identity

pytest.importorskip("ray", reason='needs the extra "ray"')

A, B = {"model": "a", "mask": "causal"}, {"model": "b", "mask": "causal"}


class RayError(Exception):
    """An actor is gone."""


class RayTaskError(RayError):
    """An actor's own code failed."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class Call:
    def __init__(self, answer: Any, after: int = 0) -> None:
        self.answer, self.after = answer, after


class Host:
    """A host on which ``hello`` answers after some looks, and each further call is answered by ``exchange``."""

    def __init__(self, hello: Any, after: int = 0, exchange: Any = None) -> None:
        self.answer, self.after, self.trouble, self.alive = hello, after, exchange, True
        self.hello = SimpleNamespace(remote=lambda: Call(self.answer, self.after))
        self.exchange = SimpleNamespace(remote=self._exchange)

    def _exchange(self, pieces: list[tuple[int, int]]) -> Call:
        if self.trouble is not None:
            return Call(self.trouble(self))
        return Call(([(number, (self, value)) for number, value in pieces], len(pieces)))


class Clock:
    """In the place of the module ``time``: its seconds pass only while somebody sleeps."""

    seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def __getattr__(self, name: str) -> Any:
        return lambda: self.seconds


class DoubleOfRay:
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, places: list[Host]) -> None:
        self.places, self.clock = places, Clock()

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": f"{i:056x}", "NodeManagerAddress": f"host{i}", "Alive": host.alive, "Resources": {"CPU": 1}}
            for i, host in enumerate(self.places)
        ]

    def put(self, job: Any) -> Any:
        return job

    def remote(self, actor: Any) -> Any:
        def options(scheduling_strategy: Any, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda job, threads: self.places[int(scheduling_strategy.node_id, 16)])

        return SimpleNamespace(options=options)

    def wait(self, calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        self.clock.sleep(timeout)
        for call in calls:
            call.after -= timeout > 0
        done = [call for call in calls if call.after < 0][:num_returns]
        return done, [call for call in calls if call not in done]

    def get(self, call: Call) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, actor: Any) -> None:
        pass


@pytest.fixture
def pool_of(monkeypatch):
    def make(*places: Host, **patience: float) -> HostPool:
        double = DoubleOfRay(list(places))
        monkeypatch.setattr(hosts, "connected_ray", lambda: double)
        monkeypatch.setattr(hosts, "time", double.clock)
        return HostPool(object(), patience=Patience(**patience))

    return make


def users(pool: HostPool, n: int = 8) -> set[Host]:
    """The hosts that answered ``n`` pieces."""
    with pool:
        found = dict(pool.run(((i, i) for i in range(n)), n, 2))
    assert {number: value for number, (_, value) in found.items()} == {i: i for i in range(n)}
    return {host for host, _ in found.values()}


@pytest.mark.parametrize("cause", [MemoryError(), ImportError("no kernels"), AttributeError("x"), RefgptError("none")])
def test_a_host_that_cannot_start_is_left_out_whatever_the_cause(pool_of, caplog, cause):
    broken, whole = Host(RayTaskError(cause)), Host(A)
    assert users(pool_of(broken, whole)) == {whole}
    assert any("host0: " in told and "this host is left out" in told for told in caplog.messages)
    with pytest.raises(RefgptError, match=r"host0: cannot start; got MemoryError|host0: "):
        users(pool_of(broken))


def test_a_foreign_error_of_the_work_is_one_error_that_names_the_host(pool_of):
    with pytest.raises(RefgptError, match=r"host0: fails at its work; got MemoryError"):
        users(pool_of(Host(A, exchange=lambda host: RayTaskError(MemoryError()))))


@pytest.mark.parametrize("slow", [0, 1])
def test_different_models_at_the_start_are_an_error_whoever_is_quicker(pool_of, slow):
    places = [Host(A, after=3 * (slow == 0)), Host(B, after=3 * (slow == 1))]
    with pytest.raises(RefgptError, match=r"host0 and host1: the hosts have not the same model"):
        users(pool_of(*places))


@pytest.mark.parametrize("slow", [0, 1])
def test_the_wanted_model_is_used_whoever_is_quicker(pool_of, slow, caplog):
    places = [Host(A, after=3 * (slow == 0)), Host(B, after=3 * (slow == 1))]
    pool = pool_of(*places)
    pool.expect(A, "the earlier run")
    assert users(pool) == {places[0]}
    nobody = pool_of(Host(B), Host(B))
    nobody.expect(A, "the earlier run", "begin anew")
    with pytest.raises(RefgptError, match=r"host0: has another model than the earlier run; begin anew"):
        users(nobody)


def test_an_entry_that_must_not_be_there_is_another_one(pool_of):
    pool = pool_of(Host({**A, "adapters": {}}), Host(A))
    pool.expect({**A, "adapters": None}, "the earlier run")
    assert len(users(pool)) == 1


def test_a_slow_host_does_not_hold_up_the_others_for_long_and_is_compared_when_it_comes(pool_of, caplog):
    quick = Host(A)
    assert users(pool_of(quick, Host(B, after=10**9))) == {quick}
    slow = Host(B, after=60)
    assert users(pool_of(quick, slow), 200) == {quick}
    assert any("host1: has another model than the other hosts" in told for told in caplog.messages)


def test_a_lost_host_is_waited_for_though_another_was_left_out(pool_of):
    def lose(host: Host) -> Exception:
        host.alive = False
        return RayError("gone")

    broken, lost = Host(RayTaskError(MemoryError())), Host(A, exchange=lose)
    pool = pool_of(broken, lost, lost=0.2)
    with pytest.raises(RefgptError, match=r"no worker answers; got 0\.2 seconds; host0: cannot start"):
        users(pool)


def test_a_host_that_comes_back_does_the_work_though_another_was_left_out(pool_of):
    looks = []

    def lose(host: Host) -> Exception:
        host.trouble = None
        looks.append(host)
        return RayError("gone")

    lost = Host(A, exchange=lose)
    assert users(pool_of(Host(RayTaskError(MemoryError())), lost)) == {lost} and looks == [lost]


@pytest.mark.parametrize("slow", [0, 1])
def test_a_batch_that_goes_on_uses_the_model_of_its_journal(pool_of, tmp_path, slow):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    lines = Lines(tmp_path / "prompts.txt", None, "prompt")
    a, b = ({"model": name, "tokenizer": None, "mask": "causal"} for name in "ab")
    with Journal(tmp_path / "out.jsonl", 2) as journal:
        journal.begin(batch_identity(lines, GenerationParams(), template_of("base"), a))
        journal.write(Record(0, {}, False))

    def answers(place: Host, pieces: list[tuple[int, Any]]) -> Call:
        return Call(([(i, Record(i, {"model": place.answer["model"]}, False)) for i, _ in pieces], 1))

    def answer(*models: dict[str, Any], **how: Any) -> str:
        places = [Host({"refgpt": refgpt.__version__, **one}, 3 * (slow == i)) for i, one in enumerate(models)]
        for place in places:
            place.exchange = SimpleNamespace(remote=lambda pieces, place=place: answers(place, pieces))
        pool_of(*places)
        with Journal(tmp_path / "out.jsonl", 2) as journal, HostBatch({}, lines) as batch:
            batch.answer(journal, **how)
        return (tmp_path / "out.jsonl").read_text()

    with pytest.raises(RefgptError, match=r"has another model than the earlier run \(.*out\.jsonl.*--restart"):
        answer(b, b)
    assert answer(b, a) == '{}\n{"model": "a"}\n'


def test_hosts_of_another_version_than_this_process_are_left_out(pool_of, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n")
    pool_of(Host({**A, "refgpt": "0"}))
    with (
        HostBatch({}, Lines(tmp_path / "prompts.txt", None, "prompt")) as batch,
        pytest.raises(RefgptError, match="host0: has another refgpt than this process"),
    ):
        batch.identity()


def test_an_evaluation_refuses_hosts_for_which_its_requests_were_not_made(pool_of):
    model = refgpt.load()
    reading = reading_of(model.config, model.tokenizer, model.mask)
    work = EvaluationWork(model, [])
    found = {**work.identity, "config": [work.identity["config"][0], {**work.identity["config"][1], "n_ctx": 8}]}
    others = {"config": found, **{name: {**work.identity, name: "?"} for name in ("tokenizer", "mask")}}
    for name, other in others.items():
        pool_of(Host(other))
        with (
            HostEvaluation({}, [], [[[]]], reading) as evaluation,
            pytest.raises(RefgptError, match=f"host0: has another {name} than this process"),
        ):
            evaluation._pool.identity()
    assert users(pool_of(Host(work.identity)))
    pool = pool_of(Host(work.identity))
    pool.expect(reading, "this process")
    assert users(pool)


def test_a_model_has_the_name_that_it_has_on_one_machine(tmp_path, monkeypatch):
    def name(path: str) -> str:
        model: Any = SimpleNamespace(
            checkpoint=SimpleNamespace(path=Path(path)), engine=SimpleNamespace(config=SimpleNamespace(n_ctx=8))
        )
        return settings_of(model, "", None, "base").model

    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("files/deep")
    monkeypatch.chdir(tmp_path)
    for path, wanted in (("link", "link"), (".", tmp_path.name), ("files/deep", "deep")):
        assert name(path) == name(load_options({"model": path})["path"]) == wanted
    assert os.path.samefile(load_options({"model": "link/.."})["path"], tmp_path / "files")
    assert load_options({"model": "someone/none"})["path"] == "someone/none"


def test_an_evaluation_goes_on_only_with_the_model_of_its_records(pool_of):
    """Its digest is that of the same model on one machine, where identities have not been sent as JSON."""
    model, measure = refgpt.load(), SimpleNamespace(name="task", places=["a", "b"], check=lambda record: None)
    work = EvaluationWork(model, [])
    for digest in (identity_digest(model_identity(model)), "another"):
        host = Host(work.identity)
        host.exchange = SimpleNamespace(remote=lambda pieces: Call(([(i, {"acc": 1}) for i, _ in pieces], 1)))
        pool_of(host)
        file = RecordFile([{"item": 0, "model": digest, "acc": 0}])
        with HostEvaluation({}, [measure], [[[], []]]) as evaluation:
            if digest == "another":
                with pytest.raises(RefgptError, match="task: the results in the file are of another model"):
                    evaluation.run(0, file)
                assert len(file.records) == 1
            else:
                assert [record["acc"] for record in evaluation.run(0, file).records] == [0, 1]
                assert {record["model"] for record in file.records} == {digest}
