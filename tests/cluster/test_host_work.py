"""Work for many hosts: each piece has one result, whichever worker dies, falls behind or joins."""

from __future__ import annotations

import pytest

from refgpt._common.errors import RefgptError
from refgpt.batches.running import by_number
from refgpt.cluster import hosts
from refgpt.cluster.connect import Patience, connected
from refgpt.cluster.host_worker import Source
from refgpt.cluster.hosts import HostPool
from tests.helpers import ray_cluster
from tests.helpers.ray_cluster import NODE, Squares, wait_until

ray = pytest.importorskip("ray", reason='needs the extra "ray"')

N = 60


@pytest.fixture
def connection(cluster_of_two):
    with connected(cluster_of_two.address):
        yield cluster_of_two


def run(job, n=N, **options):
    """The results of ``n`` pieces, by number."""
    with HostPool(job, **options) as pool:
        found = list(pool.run(((i, i) for i in range(n)), n, 16))
        assert pool.n_tokens >= n - 16
    assert sorted(number for number, _ in found) == list(range(n))
    assert all(square == number**2 for number, (square, _, _) in found)
    return dict(found)


def processes(found):
    return {pid for _, pid, _ in found.values()}


def test_all_hosts_work_each_with_all_its_processors(connection, tmp_path):
    found = run(Squares(tmp_path, ray_cluster.together))
    assert len(processes(found)) == 2 and {threads for _, _, threads in found.values()} == {1}
    assert {threads for _, _, threads in run(Squares(tmp_path), n=4, threads=3).values()} == {3}


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_done_twice(connection, tmp_path, caplog):
    found = run(Squares(tmp_path, ray_cluster.die_once))
    assert (tmp_path / "killed").exists() and len(list(tmp_path.glob("started-*"))) == 3
    assert len(processes(found)) >= 2
    assert any("a worker is gone" in message for message in caplog.messages)


def test_a_lost_host_is_done_without_and_one_that_joins_works_too(connection, tmp_path):
    def alive():
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    before = alive()
    doomed = connection.add_node(**NODE)
    (name,) = alive() - before
    joined = None
    with HostPool(Squares(tmp_path, ray_cluster.name_node)) as pool:
        n, done = 500, []
        for number, (square, _, _) in pool.run(((i, i) for i in range(n)), n, 16):
            assert square == number**2
            done.append(number)
            if doomed is not None and (tmp_path / name).exists():
                connection.remove_node(doomed, allow_graceful=False)
                doomed = None
                joined = connection.add_node(**NODE)
    assert doomed is None and sorted(done) == list(range(n))
    assert len(list(tmp_path.iterdir())) == 4  # the two, the lost one, and the one that joined
    connection.remove_node(joined)
    wait_until(lambda: alive() == before)  # a host that is still listed would be waited for in the next test


def leaves_one_host_out(job, caplog, what):
    """Let both hosts work until one of them has been left out; the other one does all the work."""

    def told(pool):
        assert sorted(number for number, _ in pool.run(((i, i) for i in range(4)), 4, 4)) == [0, 1, 2, 3]
        return any(what in message and "this host is left out" in message for message in caplog.messages)

    with HostPool(job) as pool:
        wait_until(lambda: told(pool))
        assert len({pid for _, (_, pid, _) in pool.run(((i, i) for i in range(9)), 9, 2)}) == 1


def test_a_host_that_cannot_load_the_model_is_left_out(connection, tmp_path, caplog):
    leaves_one_host_out(Squares(tmp_path, ray_cluster.fail_on_one), caplog, "127.0.0.1, model: there is no such file")
    with pytest.raises(RefgptError, match=r"127\.0\.0\.1, model: there is no such file"):
        run(Squares(tmp_path, ray_cluster.fail_to_load))


def test_hosts_with_different_models_are_an_error_that_names_both(connection, tmp_path):
    with pytest.raises(RefgptError, match=r"127\.0\.0\.1 and 127\.0\.0\.1: the hosts have not the same weights"):
        run(Squares(tmp_path, ray_cluster.differ))


def test_an_error_of_the_work_ends_it(connection, tmp_path):
    with pytest.raises(RefgptError, match=r"127\.0\.0\.1, item 5: the logits are not finite"):
        run(Squares(tmp_path, ray_cluster.fail_at_work))


def test_a_piece_that_kills_every_worker_ends_the_work(connection, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "MOST_LOSSES", 1)
    with pytest.raises(RefgptError, match="workers die here"):
        run(Squares(tmp_path, ray_cluster.always_die), n=6)


def test_hosts_that_have_no_free_processor_start_no_worker(connection, tmp_path):
    with (
        HostPool(Squares(tmp_path)) as other,
        HostPool(Squares(tmp_path), patience=Patience(start=1)) as pool,
    ):
        assert other.identity() == {"weights": 0}
        wait_until(lambda: not ray.available_resources().get("CPU"))
        with pytest.raises(RefgptError, match=r"no worker has started.*ray status"):
            pool.identity()


def test_settings_that_make_no_sense_are_refused(connection, tmp_path):
    for options, named in (({"threads": 0}, "threads"), ({"per_host": 0}, "workers_per_host")):
        with pytest.raises(RefgptError, match=named):
            HostPool(Squares(tmp_path), **options)


def test_a_source_waits_only_if_nothing_is_worked_on():
    source = Source()
    source.add([(0, "a"), (1, "b")])
    assert source.take() == (0, "a") and source.take() == (1, "b") and source.take() is None
    source.finish()
    assert source.take() is None
    source.finish()
    source.add([(2, "c")])
    assert source.take() == (2, "c")


def test_results_are_put_in_order():
    assert list(by_number([(3, "d"), (1, "b"), (2, "c"), (4, "e")], 1)) == ["b", "c", "d", "e"]
    assert list(by_number([(1, "b")])) == []


def test_without_a_cluster_there_is_one_clear_error(tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(RefgptError, match="there is no Ray cluster"):
        HostPool(Squares(tmp_path))
    with pytest.raises(RefgptError, match=r"there is no Ray cluster.*ray start --head"), connected("127.0.0.1:1"):
        pass


@pytest.mark.parametrize("port", ["0", "65536", "99999999999999999999", "9" * 5000, "६३७९"])
def test_a_port_that_cannot_be_is_one_clear_error(port):
    with (
        pytest.raises(RefgptError, match=r"there is no such port.*wanted a number from 1 to 65535"),
        connected(f"h:{port}"),
    ):
        pass


def test_a_name_that_cannot_be_is_one_clear_error():
    with (
        pytest.raises(RefgptError, match=r"head\.\.local:6379: there is no Ray cluster"),
        connected("head..local:6379"),
    ):
        pass
