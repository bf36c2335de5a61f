"""What a training costs on given links, and how long it takes on simulated machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rounds import measured, predicted
from refgpt._common.errors import RefgptError
from refgpt._open import default_model_path
from refgpt.cli import main
from refgpt.cluster.bill import Training, bills, message_bytes, ring_bill, simulated, sparse_bill
from refgpt.cluster.compression import parse_compression
from refgpt.cluster.rounds import parse_sync
from refgpt.cluster.simulation import Fleet, ring_seconds, simulate
from refgpt.spec.gptj import Config

DATA = Path(__file__).parents[1] / "data"


def test_the_published_633_terabytes_are_a_ring_of_float16():
    story = Training(Config().n_params, 27_008, 32, 1e9)
    ring = ring_bill(story)
    assert round(ring.sent / 1e12) == 633
    assert ring.link_seconds / 86_400 == pytest.approx(58.6, abs=0.05)


@pytest.mark.parametrize("name", ["f16", "int4", "topk:0.03,bits:2", "cocktail"])
def test_a_message_is_as_long_as_it_will_be(name):
    method = parse_compression(name)
    vector = np.random.RandomState(5).standard_normal(1_000_000).astype(np.float32)
    assert message_bytes(method, len(vector)) == pytest.approx(len(method.encode(vector)), rel=0.01)


def test_fewer_rounds_cost_less_and_the_coordinator_carries_all():
    training = Training(1_000_000, 1000, 4, 1e8, 0.5)
    often, seldom = (sparse_bill(training, parse_sync(f"every:{n}"), parse_compression("int4")) for n in (1, 50))
    assert often.sent == pytest.approx(50 * seldom.sent)
    assert seldom.hub_seconds == pytest.approx(4 * seldom.link_seconds)
    assert seldom.seconds == pytest.approx(500 + 2 * seldom.hub_seconds)


@pytest.mark.parametrize("changes", [{"n_workers": 1}, {"n_steps": 0}, {"bits_per_second": 0}, {"n_trained": 0}])
def test_trainings_that_make_no_sense_are_refused(changes):
    given = {"n_trained": 10, "n_steps": 10, "n_workers": 2, "bits_per_second": 1e6} | changes
    with pytest.raises(RefgptError, match=next(iter(changes))):
        Training(**given)


def alike(n, **more):
    return Fleet(np.full(n, 2.0), np.full(n, 1e6), 1e9, **more)


def test_equal_machines_take_what_the_arithmetic_says():
    rounds = parse_sync("every:10").rounds(30, 0)
    found = simulate(alike(4), rounds, 125_000, 125_000, 0)
    # Ten steps, a second up, a second down; the coordinator's 4 Mbit down take 4 ms, its own link is not the limit.
    assert found.seconds == pytest.approx(3 * (20 + 1 + 1), rel=1e-3)
    assert found.counted == 1 and found.sent == 3 * 125_000 and found.refetched == 0
    assert found.computing == pytest.approx(60)


def test_a_narrow_coordinator_is_the_limit():
    rounds = parse_sync("every:10").rounds(10, 0)
    wide, narrow = (
        simulate(Fleet(np.full(50, 2.0), np.full(50, 1e6), hub), rounds, 125_000, 125_000, 0).seconds
        for hub in (1e9, 1e6)
    )
    assert wide < 23 and narrow == pytest.approx(20 + 50 + 50)


def test_one_straggler_is_left_behind_and_fetches_the_weights():
    slow = np.full(8, 2.0)
    slow[0] = 100.0
    rounds = parse_sync("every:10").rounds(50, 0)
    found = simulate(Fleet(slow, np.full(8, 1e6), 1e9), rounds, 125_000, 125_000, 1e6)
    assert found.seconds < 5 * (1.5 * 21 + 2) and found.counted == pytest.approx(7 / 8)
    assert found.refetched == pytest.approx(4 * 1e6 / 8)  # before each round but the first
    patient = simulate(Fleet(slow, np.full(8, 1e6), 1e9), rounds, 125_000, 125_000, 1e6, quorum=1.0)
    assert patient.seconds > 5 * 1000 and patient.counted == 1


def test_the_coordinators_link_carries_the_weights_that_workers_take():
    rounds = parse_sync("every:10").rounds(20, 0)
    fleets = [Fleet(np.full(100, 2.0), np.full(100, 1e9), hub, failure_rate=0.5) for hub in (1e9, 1e7)]
    quick, waiting = (simulate(f, rounds, 1e3, 1e3, 1e6, quorum=1.0, seed=3) for f in fleets)
    assert quick.refetched == waiting.refetched > 0
    # What each machine took went through the narrow link one after another.
    taken = quick.refetched * 100
    assert waiting.seconds == pytest.approx(quick.seconds + 8 * taken * (1 / 1e7 - 1 / 1e9), rel=0.01)


def test_thousands_of_machines_that_come_and_go():
    fleet = Fleet.drawn(3000, 2.0, 2e7, 1e10, failure_rate=0.05, return_rate=0.3, seed=1)
    rounds = parse_sync("random:0.05").rounds(1000, 1)
    found = simulate(fleet, rounds, 1e6, 1e6, 1e8, seed=2)
    # In the long run 0.3 / (0.3 + 0.05) are there; a quarter may be late.
    assert 0.6 < found.counted < 0.9 and found.seconds == pytest.approx(found.computing + found.talking)
    assert simulate(fleet, rounds, 1e6, 1e6, 1e8, seed=2) == found


@pytest.mark.parametrize("changes", [{"seconds_per_step": [0.0]}, {"bits_per_second": [1, 2]}, {"failure_rate": 2}])
def test_fleets_that_make_no_sense_are_refused(changes):
    given = {"seconds_per_step": [1.0], "bits_per_second": [1e6], "hub_bits_per_second": 1e6} | changes
    with pytest.raises(RefgptError, match=next(iter(changes))):
        Fleet(**given)


def test_the_command_prints_the_table(capsys):
    assert main(["plan", "gpt-jt"]) == 0
    printed = capsys.readouterr().out
    assert "633 TB" in printed and "58.6 days" in printed and "49.9x" in printed
    assert (
        main(["plan", "7e6", "--tokens", "1e6", "--batch", "1000", "--sync", "every:9", "--compress", "int2", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["training"]["n_steps"] == 1000 and found["methods"][-1]["method"] == "every:9, int2"
    assert [row["sent"] for row in found["methods"]] == [b.sent for b in bills(Training(**found["training"]))] + [
        found["methods"][-1]["sent"]
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "--steps", "3"],
        ["7e6"],
        ["7e6", "--steps", "0"],
        ["7e6", "--tokens", "-1"],
        ["7e6", "--steps", "1", "--links", "0"],
        ["7e6", "--steps", "1", "--workers", "0"],
        ["7e6", "--tokens", "1e9", "--batch", "0"],
        ["7e6", "--tokens", "inf"],
        ["7e6", "--tokens", "1e300", "--batch", "1e-300"],
        ["7e6", "--steps", "1000000000000", "--step-seconds", "1", "--spread", "1"],
        ["7e6", "--steps", "1", "--workers", "10000000000", "--step-seconds", "1", "--spread", "1"],
    ],
)
def test_the_command_refuses_what_makes_no_sense(arguments, capsys):
    assert main(["plan", *arguments]) == 1
    assert "refgpt: error:" in capsys.readouterr().err


def test_the_included_model_is_counted(capsys):
    assert main(["plan", str(default_model_path()), "--steps", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["n_trained"] > 1_000_000


def test_a_ring_waits_for_the_slowest_machine_and_the_slowest_link():
    fleet = Fleet([1.0, 3.0], [1e6, 4e6], 1e9)
    assert ring_seconds(fleet, 10, 125_000) == pytest.approx(10 * (3 + 1))


def test_what_the_coordinator_computes_is_added_to_each_round():
    rounds = parse_sync("every:10").rounds(30, 0)
    quick, busy = (simulate(alike(4), rounds, 1e5, 1e5, 0, coordinator_seconds=s).seconds for s in (0, 5))
    assert busy == pytest.approx(quick + 15)


SIMULATE = ["plan", "7e6", "--steps", "500", "--workers", "300", "--links", "20", "--step-seconds", "2"]


def test_the_command_simulates_unequal_machines(capsys):
    fleet = ["--hub", "1000", "--spread", "0.5", "--leave", "0.05", "--return", "0.3"]
    assert main([*SIMULATE, *fleet]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("simulated  counted") and lines[2].endswith("stops") and lines[3].endswith("%")
    assert main([*SIMULATE, *fleet, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    drawn = Fleet.drawn(300, 2.0, 2e7, 1e9, 0.5, failure_rate=0.05, return_rate=0.3)
    wanted = simulated(Training(**found["training"]), drawn, parse_sync("random:0.04"), parse_compression("int4"))
    (row,) = (row for row in found["methods"] if row["method"] == "random:0.04, int4")
    assert row["simulated"] == asdict(wanted) and 0.5 < wanted.counted < 1
    assert main([*SIMULATE, "--spread", "1"]) == 0
    assert "stops" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--step-seconds", "0", "--spread", "1"], "step-seconds"),
        (["--spread", "-1"], "spread"),
        (["--leave", "2"], "failure_rate"),
        (["--hub", "0"], "hub"),
    ],
)
def test_simulations_that_make_no_sense_are_refused(options, named, capsys):
    assert main([*SIMULATE, *options]) == 1
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("one", json.loads((DATA / "rounds.json").read_text()), ids=lambda one: one["compress"])
def test_the_simulation_says_what_four_hosts_have_measured(one):
    """Recorded by ``python -m benchmarks.rounds``. The simulation does not overlap computing with transfers."""
    simulated, counted = predicted(one), measured(one)
    start = 0.4e6  # what Ray sends to a worker at the start, with its texts
    assert simulated["bytes"] == pytest.approx(counted["bytes"] - start, rel=0.03)
    assert simulated["seconds"] == pytest.approx(counted["seconds"], rel=0.15)
    assert predicted(one, computing=False)["seconds"] < counted["seconds"]
