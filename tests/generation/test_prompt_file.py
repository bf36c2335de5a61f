"""A prompt's file changes how much is computed, and no text."""

from __future__ import annotations

import os

import pytest

import refgpt
from refgpt import GenerationError, cli
from refgpt.runtime import RuntimeSession
from refgpt.runtime.saved import read_header

STORY = "Once upon a time there was a little girl who lived with her mother in a house at the end of the wood. "


@pytest.fixture
def path(tmp_path):
    return tmp_path / "story.state"


@pytest.fixture
def n_rows(monkeypatch):
    """How many rows each pass had."""
    rows: list[int] = []
    step = RuntimeSession.step

    def counted(session, parts, n_rows=None):
        rows.append(sum(len(ids) for _, ids, _ in parts))
        return step(session, parts, n_rows)

    monkeypatch.setattr(RuntimeSession, "step", counted)
    return rows


@pytest.mark.parametrize("dtype", [None, "q8"])
def test_the_second_time_only_the_last_token_is_computed(path, n_rows, dtype):
    model = refgpt.load(dtype=dtype)
    n_prompt = len(model.tokenizer.encode(STORY))
    want = model.generate(STORY, max_new_tokens=5, seed=1, ignore_eos=True)
    for rows_read in (n_prompt, 1):
        n_rows.clear()
        assert model.generate(STORY, max_new_tokens=5, seed=1, ignore_eos=True, prompt_cache=path) == want
        assert n_rows == [rows_read, 1, 1, 1, 1]
        assert read_header(path).n_tokens == n_prompt
    assert "".join(model.stream(STORY, max_new_tokens=5, seed=1, ignore_eos=True, prompt_cache=path)) == want.text


def test_what_prompts_have_in_common_is_used_and_the_longer_one_kept(path, n_rows):
    model = refgpt.load()
    model.generate(STORY + "Her name", max_new_tokens=1, prompt_cache=path)
    for prompt in (STORY + "One day she said", STORY, "The king"):
        want = model.generate(prompt, max_new_tokens=4, seed=1, ignore_eos=True)
        n_rows.clear()
        assert model.generate(prompt, max_new_tokens=4, seed=1, ignore_eos=True, prompt_cache=path) == want
        assert n_rows[0] < 8
    assert read_header(path).n_tokens == len(model.tokenizer.encode("The king"))


def test_beams_and_several_prompts_use_it_too(path):
    model = refgpt.load()
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2}
    want = model.generate([STORY, STORY + "She"], **options)
    for _ in range(2):
        assert model.generate([STORY, STORY + "She"], prompt_cache=path, **options) == want


def test_what_cannot_be_used_is_refused_and_not_overwritten(path, capsys):
    path.write_bytes(b"a letter to my aunt")
    model = refgpt.load()
    with pytest.raises(GenerationError, match="no saved prompt"):
        model.generate(STORY, prompt_cache=path)
    assert cli.main(["generate", STORY, "--prompt-cache", str(path), "-m", "nowhere"]) == 1
    assert "no saved prompt" in capsys.readouterr().err and path.read_bytes() == b"a letter to my aunt"
    path.unlink()
    model.generate(STORY, max_new_tokens=1, prompt_cache=path)
    before = path.read_bytes()
    with pytest.raises(GenerationError, match="another model"):
        refgpt.load(dtype="q8").generate(STORY, max_new_tokens=1, prompt_cache=path)
    with pytest.raises(GenerationError, match=r"prompt_cache.*mask='causal'"):
        refgpt.load(mask="prefix").generate(STORY, prompt_cache=path)
    assert path.read_bytes() == before


def test_the_command_keeps_a_prompt(path, capsys):
    for _ in range(2):
        assert cli.main(["generate", STORY, "--prompt-cache", str(path), "-n", "5", "--temperature", "0"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and os.listdir(path.parent) == [path.name]
