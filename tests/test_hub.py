"""Models by name, against a hub on this machine that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

import refgpt
from refgpt.checkpoints import hub
from tests.helpers.ggml_writers import gguf_bytes
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.work import HANGS
from tests.helpers.writers import state_dict, write_shards, write_torch

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=2)
IDS = [3, 1, 4, 1, 5]
NAME = "someone/gpt-j-tiny"


class Hub:
    """Models on a loopback address: files by name, revision and path, and a list of what was asked for."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(self.path.rpartition("/")[2])
                self.do_HEAD()

            def do_HEAD(self) -> None:
                self.answer(*hub.answer(unquote(self.path)))

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, name: str, revision: str) -> str:
        return hashlib.sha1(f"{name} {revision}".encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for (name, revision), directory in self.models.items():
            commit = self.commit(name, revision)
            if name in self.gated and name in path:
                return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, b""
            revisions = (f"/revision/{revision}", f"/revision/{commit}", *([""] if revision == "main" else ()))
            if path in [f"/api/models/{name}{suffix}" for suffix in revisions]:
                siblings = [{"rfilename": file.relative_to(directory).as_posix()} for file in directory.rglob("*")]
                info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
                return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
            for spelt in (commit, revision):
                start = f"/{name}/resolve/{spelt}/"
                file = directory / path.removeprefix(start)
                if path.startswith(start) and file.is_file():
                    raw = file.read_bytes()
                    return 200, {"ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "X-Repo-Commit": commit}, raw
        known = any(path.startswith(f"/api/models/{name}") for name, _ in self.models)
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b"{}"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The hub, and an empty cache."""
    found = Hub()
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def directory(tmp_path):
    return write_tokenizer(write_model(tmp_path / "model", CONFIG, PARAMS))


def test_a_model_by_its_name(served, directory):
    (directory / "pytorch_model.bin").write_bytes(b"is not wanted beside safetensors")
    (directory / "README.md").write_text("nor is this")
    served.models[NAME, "main"] = directory
    model = refgpt.load(NAME)
    assert model.logits(IDS).tobytes() == refgpt.load(directory).logits(IDS).tobytes()
    assert model.tokenizer.encode("Hi") == refgpt.load(directory).tokenizer.encode("Hi")
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= set(served.asked)
    assert not {"pytorch_model.bin", "README.md"} & set(served.asked)
    served.asked.clear()
    refgpt.load(NAME)
    assert "model.safetensors" not in served.asked  # it is in the cache


def test_a_tokenizer_under_gpt_2s_first_names(served, directory):
    (directory / "vocab.json").rename(directory / "encoder.json")
    (directory / "merges.txt").rename(directory / "vocab.bpe")
    served.models[NAME, "main"] = directory
    tokenizer = refgpt.load(NAME).tokenizer
    assert tokenizer is not None and tokenizer.encode("Hi") == refgpt.load(directory).tokenizer.encode("Hi")


def test_a_revision(served, directory, tmp_path):
    other = write_model(tmp_path / "other", CONFIG, random_params(CONFIG, seed=3))
    served.models |= {(NAME, "main"): directory, (NAME, "float16"): other}
    commit = served.commit(NAME, "float16")
    want = refgpt.load(other).logits(IDS).tobytes()
    assert refgpt.load(NAME, revision="float16").logits(IDS).tobytes() == want
    assert refgpt.load(NAME, revision=commit).logits(IDS).tobytes() == want
    assert refgpt.load(NAME).logits(IDS).tobytes() != want
    with pytest.raises(refgpt.RefgptError, match=r"gpt-j-tiny, revision v9: the model has no such revision"):
        refgpt.load(NAME, revision="v9")
    with pytest.raises(refgpt.RefgptError, match="only a model on the hub has revisions"):
        refgpt.load(directory, revision="main")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(served, directory, suffix):
    (directory / "model.safetensors").unlink()
    write_shards(directory, suffix, state_dict(PARAMS))
    served.models[NAME, "main"] = directory
    assert refgpt.load(NAME).logits(IDS).tobytes() == refgpt.load(directory).logits(IDS).tobytes()
    assert sum(suffix in file and "index" not in file for file in dict.fromkeys(served.asked)) == 3
    shard = next(directory.glob(f"*-of-*.{suffix}"))
    shard.unlink()
    with pytest.raises(refgpt.RefgptError, match="index of the weights names files that are not there"):
        hub.fetch(NAME)


def test_pytorchs_weights_are_read_and_never_run(served, directory, tmp_path):
    (directory / "model.safetensors").unlink()
    write_torch(directory / "pytorch_model.bin", state_dict(PARAMS))
    served.models[NAME, "main"] = directory
    assert refgpt.load(NAME).logits(IDS).tobytes() == refgpt.load(directory).logits(IDS).tobytes()

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    served.models = {(NAME, "harm"): directory}
    with pytest.raises(refgpt.RefgptError):
        refgpt.load(NAME, revision="harm")
    assert not (tmp_path / "harm").exists()


def test_a_gguf_file_on_the_hub(served, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt-j.gguf").write_bytes(gguf_bytes())
    served.models[NAME, "main"] = tmp_path / "model"
    assert refgpt.load(NAME).checkpoint.format == "GGUF, version 3"
    (tmp_path / "model" / "another.gguf").write_bytes(gguf_bytes())
    with pytest.raises(refgpt.RefgptError, match=r"no weights that are read by its name.*another\.gguf"):
        refgpt.load(NAME)


def test_gpt_jt_is_known_by_its_name(served, directory):
    served.models["togethercomputer/GPT-JT-6B-v1", "main"] = directory
    assert refgpt.load("togethercomputer/GPT-JT-6B-v1").mask == "prefix"


def test_a_path_wins(served, directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "mine", CONFIG, random_params(CONFIG, seed=7))
    (tmp_path / "mine").rename(tmp_path / "tiny")
    (tmp_path / "someone").mkdir()
    (tmp_path / "tiny").rename(tmp_path / "someone" / "gpt-j-tiny")
    assert refgpt.load(NAME).checkpoint.path == Path(NAME)
    assert not served.asked


@pytest.mark.parametrize("text", ["no-slash", "a/b/c", "/abs/path", "./x", "../x/y", "a/", "~/x", "a b/c"])
def test_what_is_no_name(text):
    assert not hub.is_name(text)
    with pytest.raises(refgpt.RefgptError, match="no such file or directory"):
        refgpt.load(text)


def test_what_the_hub_refuses(served, directory):
    with pytest.raises(refgpt.RefgptError, match="someone/nothing: neither a path that exists nor a model on the hub"):
        refgpt.load("someone/nothing")
    served.models["someone/gated", "main"] = directory
    served.gated.add("someone/gated")
    with pytest.raises(refgpt.RefgptError, match=r"given only to those who asked.*hf auth login"):
        refgpt.load("someone/gated")
    (directory / "config.json").unlink()
    served.models[NAME, "main"] = directory
    with pytest.raises(refgpt.RefgptError, match=r"no config\.json"):
        refgpt.load(NAME)


def test_offline(served, directory, monkeypatch):
    """What is in the cache still loads; what is not is one error that says what to do."""
    served.models[NAME, "main"] = directory
    want = refgpt.load(NAME).logits(IDS).tobytes()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert refgpt.load(NAME).logits(IDS).tobytes() == want
    with pytest.raises(refgpt.RefgptError) as error:
        refgpt.load("someone/else")
    message = str(error.value)
    assert "someone/else: there is no such path, the hub cannot be reached, and its cache has no such model" in message
    assert "connect to the network" in message and "give the path" in message and len(message) < 600
    with pytest.raises(refgpt.RefgptError, match="cannot be reached"):
        refgpt.load(NAME, revision="float16")


@pytest.mark.parametrize("lost", ["config.json", "weights", "a shard", "an index of nothing"])
@pytest.mark.parametrize("sharded", [False, True])
def test_offline_with_a_part_of_a_model(served, directory, monkeypatch, tmp_path, sharded, lost):
    """As other programs leave it that fetched no more than the tokenizer, or did not come to their end."""
    if sharded:
        (directory / "model.safetensors").unlink()
        write_shards(directory, "safetensors", state_dict(PARAMS))
    served.models[NAME, "main"] = directory
    snapshot = hub.fetch(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(NAME) == snapshot
    weights = sorted(snapshot.glob("*.safetensors*"))
    if lost == "an index of nothing":
        weights[0].unlink()
        (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    else:
        files = {"config.json": [snapshot / "config.json"], "weights": weights, "a shard": weights[:1]}
        for file in files[lost]:
            file.unlink()
    with pytest.raises(refgpt.RefgptError, match="the hub cannot be reached, and its cache has no such model"):
        hub.fetch(NAME)


def test_offline_with_a_gguf_file(served, monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt-j.gguf").write_bytes(gguf_bytes())
    served.models[NAME, "main"] = tmp_path / "model"
    snapshot = hub.fetch(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(NAME) == snapshot


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(refgpt.RefgptError, match=r'gpt-j-tiny: there is no such path.*"refgpt\[hub\]"'):
        refgpt.load(NAME)


def test_the_command_line(served, directory, tmp_path):
    served.models[NAME, "float16"] = directory
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": served.url}
    command = [sys.executable, "-m", "refgpt", "generate", "-m", NAME, "--revision", "float16", "-n", "3", "Hi"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stderr
    command[command.index("float16")] = "v9"
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 1 and run.stderr.count("error:") == 1 and "Traceback" not in run.stderr
