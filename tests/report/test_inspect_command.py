"""``refgpt inspect``: where the page goes, and what is there when it fails."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

import refgpt
from refgpt import cli
from refgpt.inspect import build_report
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.pages import data_of
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("models") / "tiny", CONFIG, random_params(CONFIG, seed=2, dtype="f16"))
    return write_tokenizer(model)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = cli.main(["inspect", *map(str, arguments)])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return run


def test_it_writes_what_build_report_builds(run, path, tmp_path):
    out = tmp_path / "page.html"
    got = run("-m", path, "Once upon", "-o", out)
    want = build_report(refgpt.load(path), "Once upon")
    assert (got.code, got.err, out.read_text(encoding="utf-8")) == (0, "", want)
    assert got.out == f"{out}: {len(want.encode()) / 1000:.3g} kB, 9 tokens\n"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_options_reach_the_model(run, path, tmp_path):
    out, text = tmp_path / "page.html", tmp_path / "prompt.txt"
    text.write_text("Once upon a time\n")
    options = ["--mask", "prefix", "--dtype", "q8", "--kv-dtype", "f32", "-t", 1, "--no-verify"]
    assert run("-m", path, "-f", text, "-o", out, *options).code == 0
    data = data_of(out.read_text(encoding="utf-8"))
    assert (data["prefix_len"], data["verify"], len(data["ids"])) == (16, None, 16)
    assert dict(data["facts"])["weights"].startswith("q8") and dict(data["facts"])["engine"].endswith("in f32")
    assert run("-m", path, "Hi", "-o", out, "--backend", "numpy", "--dtype", "f64").code == 0  # replaces it
    assert dict(data_of(out.read_text(encoding="utf-8"))["facts"])["engine"] == "the NumPy spec in float64"


def test_a_long_wait_is_announced(run, path, tmp_path, monkeypatch):
    monkeypatch.setattr("refgpt.cli.inspect.WORTH_A_BAR", 1)
    told = run("-m", path, "Hi", "-o", tmp_path / "page.html").err
    wanted = r"refgpt: .* with the spec in float64 takes minutes and up to [\d.]+ kB; --no-verify skips it\n"
    assert re.fullmatch(wanted, told)
    assert run("-m", path, "Hi", "-o", tmp_path / "page.html", "--no-verify").err == ""


@pytest.mark.parametrize(
    ("prompt", "out", "fault"),
    [
        ("Hi", "page.txt", "wanted a name in .html or .htm"),
        ("Hi", "nowhere/page.html", "No such file"),
        ("Hi", "folder.html", "Is a directory"),
        ("Hi" * 33, "old.html", "longer than the model's context"),
        ("Hi 1", "old.html", "cannot spell|1"),
    ],
)
def test_what_fails_leaves_what_was_there(run, path, tmp_path, monkeypatch, prompt, out, fault):
    monkeypatch.setattr("refgpt.cli.loading.start", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "old.html").write_text("old")
    got = run("-m", path, prompt, "-o", tmp_path / out)
    assert got.code == 1 and got.err.startswith("refgpt: error: ") and any(part in got.err for part in fault.split("|"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.html", "old.html"]
    assert (tmp_path / "old.html").read_text() == "old"


def test_a_page_that_is_cut_short_takes_no_name(run, path, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("refgpt.cli.inspect.build_report", interrupted)
    assert run("-m", path, "Hi", "-o", tmp_path / "page.html").code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(run, path, tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    assert run("-m", path, "Hi", "-o", tmp_path / "link.html", "--no-verify").code == 0
    assert (tmp_path / "link.html").is_symlink() and "<!doctype html>" in (tmp_path / "real.html").read_text()


def test_an_output_is_asked_for(path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["inspect", "Hi"])
    assert "-o/--output" in capsys.readouterr().err
