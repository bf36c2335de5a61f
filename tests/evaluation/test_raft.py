"""RAFT's protocol: which examples are drawn, what is asked, what counts as right."""

import re

import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.evaluation import Estimate, RaftSettings, mean_results, read_raft, run_raft
from refgpt.evaluation.raft import draw_shots, plain
from refgpt.evaluation.raft_tasks import split_rows
from tests.helpers.raft_files import model_told, write_task

YES_NO = ["yes", "no"] * 25


@pytest.fixture
def task(tmp_path):
    write_task(tmp_path, "overruling", YES_NO)
    return read_raft(tmp_path)[0]


def truth(prompt):
    """The answer that stands in the row that is asked about."""
    return " " + re.findall(r"which is (\w+)", prompt)[-1]


def test_examples_are_drawn_as_in_the_published_runs():
    """Of GPT-JT's authors (raft:subset=overruling): the numbers of the rows shown in the first and the last trial."""
    overruling = {0, 2, 14, 48}
    pool = [(str(i), "overruling" if i in overruling else "not overruling") for i in split_rows(50)[0]]
    assert [text for text, _ in draw_shots(pool, 5, 0)] == ["1", "2", "12", "14", "8"]
    assert [text for text, _ in draw_shots(pool, 5, 2)] == ["12", "0", "36", "48", "1"]


def test_examples_take_turns_between_labels_the_frequent_ones_first():
    pool = [(f"{label}{i}", label) for label, n in (("a", 1), ("b", 4), ("c", 2), ("d", 2)) for i in range(n)]
    for trial in range(20):
        drawn = draw_shots(pool, 9, trial)
        assert sorted(drawn) == pool  # each once
        labels = [label for _, label in drawn]
        assert labels[0] == "b" and set(labels[1:3]) == {"c", "d"} and labels[3:5] == ["a", "b"]
        assert labels[5:7] == labels[1:3] and labels[7:] == ["b", "b"]
        assert draw_shots(pool, 4, trial) == drawn[:4] and len(draw_shots(pool, 99, trial)) == 9
    assert len({tuple(draw_shots(pool, 9, trial)) for trial in range(20)}) > 10
    assert {draw_shots(pool, 2, trial)[1][1] for trial in range(20)} == {"c", "d"}  # either may be first
    assert draw_shots([], 5, 0) == []


@pytest.mark.parametrize("method", ["generate", "likelihood"])
def test_a_model_that_knows_is_right_and_its_prompts_are_helms(task, method):
    model, counted = model_told(truth), []
    result = run_raft(model, task, RaftSettings(method), lambda: counted.append(1))
    assert len(counted) == 120 and result.n_shortened == 0
    assert {name: estimate.value for name, estimate in mean_results([result]).items()} == {
        "exact": 1,
        "quasi-exact": 1,
        "macro-F1": 1,
    }
    prompts = [prompt for prompt, _ in model.engine.prompts]
    assert len(prompts) == 120 and all(whole for _, whole in model.engine.prompts)  # the prompt is the prefix
    want = [task.template.prompt(text, draw_shots(task.pool, 5, trial)) for trial in range(3) for text, _ in task.rows]
    assert sorted(prompts) == sorted(want)  # the order of the work is the scheduler's


def test_what_counts_as_right(task):
    """To the letter but for spaces around and what follows the line; quasi-exact passes over case and the like."""
    answers = {"no": " No.\nLabel: no", "yes": "  yes \nand more"}
    result = run_raft(model_told(lambda prompt: answers[truth(prompt).strip()]), task)
    assert set(result.answers[0]) == {"No.", "yes"}
    got = mean_results([result])
    share = sum(label == "yes" for _, label in task.rows) / 40
    assert got["exact"].value == pytest.approx(share) and got["quasi-exact"].value == 1
    assert got["macro-F1"].value == pytest.approx((1 + 0) / 2)
    assert got["exact"].low < share < got["exact"].high


@pytest.mark.parametrize(
    "text, bare",
    [
        ("The Refund_not_showing up!", "refundnotshowing up"),
        (" a  cat, an owl\n", "cat owl"),
        ("Theatre", "theatre"),
        ("...", ""),
        ("not TAI safety-research", "not tai safetyresearch"),
    ],
)
def test_quasi_exact(text, bare):
    assert plain(text) == bare


def test_an_answer_is_one_line_of_at_most_30_tokens(task):
    result = run_raft(model_told(lambda prompt: "x" * 100), task, RaftSettings(n_rows=2, n_trials=1))
    assert result.answers == (["x" * 30] * 2,)
    result = run_raft(model_told(lambda prompt: "\nyes"), task, RaftSettings(n_rows=1, n_trials=1))
    assert result.answers == ([""],) and mean_results([result])["quasi-exact"].value == 0


def test_settings_change_what_is_asked(task):
    model = model_told(truth)
    result = run_raft(model, task, RaftSettings(n_shots=2, n_trials=2, n_rows=3))
    assert [len(trial) for trial in result.trials] == [3, 3]
    assert all(prompt.count("Label: ") == 2 for prompt, _ in model.engine.prompts)
    records = list(result.records())
    assert records[4] == {
        "task": "overruling",
        "trial": 1,
        "row": 1,
        "n_shots": 2,
        "label": task.rows[1][1],
        "answer": task.rows[1][1],
    }


@pytest.mark.parametrize("method", ["generate", "likelihood"])
def test_examples_that_do_not_fit_are_left_out_the_last_first(task, method):
    whole = len(task.template.prompt(task.rows[0][0], draw_shots(task.pool, 5, 0)))
    model = model_told(lambda prompt: " yes", n_ctx=whole - 40 + 30)
    result = run_raft(model, task, RaftSettings(method, n_trials=1, n_rows=1))
    (prompt, _), *_ = model.engine.prompts
    assert prompt == task.template.prompt(task.rows[0][0], draw_shots(task.pool, 5, 0)[: result.trials[0][0].n_shots])
    assert result.trials[0][0].n_shots in (3, 4) and len(prompt) <= whole - 40
    assert result.n_shortened == 1


@pytest.mark.parametrize("method", ["generate", "likelihood"])
def test_a_row_that_does_not_fit_loses_its_end(task, method):
    model = model_told(lambda prompt: " yes", n_ctx=130)
    result = run_raft(model, task, RaftSettings(method, n_trials=1, n_rows=1))
    (prompt, _), *_ = model.engine.prompts
    assert prompt == task.template.prompt(task.rows[0][0])[:100] and result.n_shortened == 1
    assert result.answers == (["yes"],)


def test_the_mean_counts_tasks_alike(tmp_path):
    write_task(tmp_path, "overruling", YES_NO)
    write_task(tmp_path, "twitter_complaints", ["yes", "no"] * 5)
    tasks = read_raft(tmp_path)
    results = [
        run_raft(model_told(answer), task, RaftSettings(n_trials=1))
        for task, answer in zip(tasks, (truth, lambda prompt: " maybe"), strict=True)
    ]
    assert [len(task.rows) for task in tasks] == [40, 8]
    assert mean_results(results)["exact"] == Estimate(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "guess"}, "method: cannot be used; got 'guess'; wanted 'generate', 'likelihood'"),
        ({"n_shots": -1}, "n_shots: cannot be used"),
        ({"n_trials": 0}, "n_trials: cannot be used"),
        ({"n_rows": 0}, "n_rows: cannot be used"),
        ({"normalise": "x"}, "normalise: cannot be used"),
    ],
)
def test_settings_that_make_no_sense_are_named(change, said):
    with pytest.raises(GenerationError, match=said):
        RaftSettings(**change)


def test_a_model_that_cannot_be_asked(task):
    with pytest.raises(GenerationError, match=r"overruling: the model's context is too small .*got 30 positions"):
        run_raft(model_told(truth, n_ctx=30), task)
    model = model_told(truth)
    model.tokenizer = None
    with pytest.raises(GenerationError, match="no tokenizer"):
        run_raft(model, task)


@pytest.mark.parametrize("method", ["generate", "likelihood"])
def test_both_backends_answer_alike(task, method):
    """The default model, which knows nothing of it; its prompts lose examples to fit into 512 positions."""
    settings = RaftSettings(method, n_trials=1, n_rows=2, n_shots=1)
    one, two = (run_raft(refgpt.load(backend=backend), task, settings) for backend in ("c", "numpy"))
    assert one.answers == two.answers and one.trials == two.trials
    assert method == "generate" or set(one.answers[0]) <= set(task.labels)
