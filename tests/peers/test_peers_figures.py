"""From answers to the report: figures, ratios, shares, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.lineup import FORMS, chosen, forms_of, groups
from benchmarks.peers.measure import turn
from benchmarks.peers.models import makers
from benchmarks.peers.processors import CpuTimes, shares
from benchmarks.peers.questions import EVERYTHING, FIGURES, figures, prompt
from benchmarks.peers.ratios import Spread, peak, peak_share, prefill_ops, rate, ratio, read_share
from benchmarks.peers.report import number, report

#: What a run on a busy machine wrote: one layer, two rounds, two of its groups.
RECORDED = json.loads(Path(__file__).with_name("results.json").read_text(encoding="utf-8"))


def results(rates: dict[str, list[float | None]], **yardstick: float) -> dict[str, Any]:
    """Some engines' rates in successive rounds of a group called "g"; None is a round that an engine missed."""
    n_rounds = max(map(len, rates.values()))
    return {
        "records": [
            {"engine": name, "round": n, "what": "prefill 32", "tokens/s": found}
            for name, row in rates.items()
            for n, found in enumerate(row)
            if found is not None
        ],
        "yardsticks": [{"group": "g", "round": n, **yardstick} for n in range(-1, n_rounds)],
        "groups": [{"title": "g", "engines": list(rates)}],
        "engines": {name: {"n_bytes": 2_000_000_000, "threads": 2} for name in rates},
    }


def test_answers_become_tokens_a_second():
    text, alone, _, together = EVERYTHING
    assert dict(figures(text, {"prefill": 0.5, "decode": 2.0})) == {"prefill 32": 64, "decode after 32": 8}
    assert dict(figures(alone, {"prefill": 0.5, "decode": 0.0})) == {"prefill 128": 256}
    assert dict(figures(together, {"decode": 4.0})) == {"8 sequences": 16}
    assert dict(figures(together, {"decode": None})) == {}
    asked = [what for question in EVERYTHING for what, _ in figures(question, {"prefill": 1.0, "decode": 1.0})]
    assert sorted(asked) == sorted(FIGURES)


def test_prompts_are_the_same_for_all_and_differ_from_each_other():
    assert prompt(32) == prompt(64)[:32]
    assert prompt(32, 1) != prompt(32)
    assert 0 <= min(prompt(5000)) <= max(prompt(5000)) < 50000


def test_a_ratio_is_taken_within_a_round():
    """The machine slowed down threefold in the second round and fourfold in the third; the ratio did not."""
    found = results({"ours": [90.0, 30.0, 22.5], "theirs": [60.0, 20.0, 15.0]})
    assert ratio(found, "ours", "theirs", "prefill 32") == Spread(1.5, 1.5, 1.5)
    assert rate(found, "ours", "prefill 32") == Spread(30.0, 22.5, 90.0)
    uneven = results({"ours": [10.0, 40.0, 90.0], "theirs": [10.0, 10.0, 30.0]})
    assert ratio(uneven, "ours", "theirs", "prefill 32") == Spread(3.0, 1.0, 4.0)


def test_only_rounds_that_both_took_part_in_count():
    found = results({"ours": [10.0, 20.0, 30.0], "theirs": [None, 10.0, None], "broken": []})
    assert ratio(found, "ours", "theirs", "prefill 32") == Spread(2.0, 2.0, 2.0)
    assert ratio(found, "ours", "broken", "prefill 32") is None
    assert rate(found, "broken", "prefill 32") is None


def test_shares_of_what_the_machine_can_do():
    found = results({"ours": [5.0, 10.0]}, read=40.0, float32=320.0)
    assert read_share(found, "g", "ours", "prefill 32") == Spread(0.375, 0.25, 0.5)  # 2 GB a token, 40 GB/s
    assert peak_share(found, "ours", "prefill 32", 16e9, "float32") == Spread(0.375, 0.25, 0.5)
    assert peak_share(found, "ours", "prefill 32", 4e9, "int8") is None  # was not measured


def test_a_peak_is_the_best_that_was_seen_with_as_many_threads():
    found = results({"ours": [5.0, 10.0]}, float32=320.0)
    found["groups"].append({"title": "alone", "engines": ["one thread", "never loaded"]})
    found["engines"]["one thread"] = {"threads": 1}
    more = ("alone", 1000.0), ("g", 640.0)
    found["yardsticks"] += [{"group": title, "round": 9, "float32": best} for title, best in more]
    assert (peak(found, 2, "float32"), peak(found, 1, "float32"), peak(found, 4, "float32")) == (640.0, 1000.0, None)
    assert peak_share(found, "ours", "prefill 32", 16e9, "float32") == Spread(0.1875, 0.125, 0.25)


def test_operations_of_gptj():
    """All weights but the embedding multiply for a prompt of one token; the head only once for a longer one."""
    assert prefill_ops(28, 1) == 2 * (28 * 12 * 4096**2 + 50400 * 4096)
    assert prefill_ops(28, 512) == 2 * (28 * 12 * 4096**2 + 50400 * 4096 / 512)
    assert prefill_ops(4, 1, whole=False) == prefill_ops(4, 1)
    assert prefill_ops(4, 512, whole=False) == 2 * (38 * 4096**2 + (10 * 4096**2 + 50400 * 4096) / 512)


def test_who_used_the_processors(monkeypatch: pytest.MonkeyPatch):
    """Two processors for 2 s: our engine had 2 s of them, another that should wait 0.4, a stranger 1, the host 0.2."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = CpuTimes(100.0, 7.0, {1: 10.0, 2: 20.0})
    after = CpuTimes(103.4, 7.2, {1: 12.0, 2: 20.4})
    assert shares(before, after, 2.0, working=1) == pytest.approx(
        {"waiting engines": 0.1, "strangers": 0.25, "host": 0.05}
    )


def test_each_takes_its_turn_to_be_first():
    assert [turn(["a", "b", "c"], n)[0] for n in range(-1, 3)] == ["c", "a", "b", "c"]
    assert sorted(turn(["a", "b", "c"], 1)) == ["a", "b", "c"]
    assert turn([], 1) == []


def test_every_form_of_the_model_can_be_made_and_is_wanted():
    assert tuple(makers(4)) == FORMS
    assert forms_of(groups(2)) == list(FORMS)


def test_a_form_comes_with_those_it_is_made_from():
    assert forms_of(chosen(groups(2), "openvino int4")) == ["gptj", "reference.npy", "openvino-f16", "openvino-int4"]
    assert forms_of(chosen(groups(2), "q3_k")) == ["gptj", "reference.npy", "twin-F16.gguf", "twin-Q3_K_S.gguf"]


def test_engines_can_be_chosen():
    some = chosen(groups(2), "q4_0, refgpt f")
    assert [[e.name for e in group.engines] for group in some] == [
        ["llama.cpp Q4_0", "llama.cpp Q4_0 pure", "ctransformers q4_0"],
        ["llama.cpp Q4_0, 1 thread"],
        ["refgpt f16"],
        ["refgpt f32"],
    ]
    assert forms_of(some) == [
        "gptj",
        "reference.npy",
        "twin-F16.gguf",
        "twin-Q4_0.gguf",
        "twin-Q4_0-pure.gguf",
        "ggml-q4_0.bin",
    ]
    assert chosen(groups(2), None) == groups(2)


def test_threads_are_as_asked_but_for_the_group_of_one():
    assert {group.threads for group in groups(8)} == {1, 8}
    assert all(engine.threads == group.threads for group in groups(8) for engine in group.engines)
    names = [engine.name for group in groups(2) for engine in group.engines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("value", "shown"), [(None, "–"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123")])
def test_three_digits_that_count(value: float | None, shown: str):
    assert number(value) == shown


# ---- report ----------------------------------------------------------------------------------------------------------


def lines(changed: dict[str, Any] | None = None) -> list[str]:
    return list(report(RECORDED | (changed or {})))


def test_the_report_shows_what_was_recorded():
    """Medians of two rounds are means: refgpt q4 decoded at 47.67 and 25.0, Q4_0 at 10.67 and 5.413 beside it."""
    text = lines()
    assert "| refgpt q4 | 140 / 252 / 232 | 36.3 / 29.6 | 250 |" in text
    assert "| ctransformers q4_0 | 14.2 / 17.4 / 16.2 | 3.79 / 3.32 | – |" in text  # it takes one text at a time
    assert next(line for line in text if line.startswith("| refgpt q4 / llama.cpp Q4_0 |")).split(" | ")[4] == (
        "4.54 (4.47–4.62)"
    )
    shares = next(line for line in text if line.startswith("| refgpt q4 | 0.23")).split(" | ")
    assert shares[2] == "97% / 81%"  # 0.2297 GB a token; 9.374 and 7.456 GB/s
    assert sum(line.startswith("| refgpt q8 ") for line in text) == 4  # speed, two peers, machine
    assert not any(line.startswith("### Left out") for line in text)


def test_the_report_says_that_the_machine_was_busy():
    assert any("strangers took 77%" in line for line in lines())
    quiet = [record | {"strangers": 0.01} for record in RECORDED["records"]]
    assert not any("was not quiet" in line for line in lines({"records": quiet}))


def test_the_report_says_what_the_engines_were_held_to():
    assert "held to" not in lines()[0]
    assert lines({"isa": "avx2"})[0].endswith("medians of 2 rounds. Every engine was held to avx2.")


def test_the_report_names_what_was_left_out():
    """An engine that never loaded has no rows; one that broke later keeps what it gave."""
    engines = RECORDED["engines"] | {
        "refgpt q4": {"failed": "no such dtype"},
        "llama.cpp Q8_0": RECORDED["engines"]["llama.cpp Q8_0"] | {"failed": "ended with status -11"},
    }
    records = [record for record in RECORDED["records"] if record["engine"] != "refgpt q4"]
    text = lines({"engines": engines, "records": records})
    assert "- refgpt q4: no such dtype" in text
    assert "- llama.cpp Q8_0: ended with status -11" in text
    assert not any(line.startswith("| refgpt q4") for line in text)
    assert sum(line.startswith("| llama.cpp Q8_0 |") for line in text) == 2


def test_a_run_without_any_engine_is_reported_too():
    engines = {name: {"failed": "broken"} for name in RECORDED["engines"]}
    assert lines({"engines": engines, "records": []})[-1].endswith(": broken")
