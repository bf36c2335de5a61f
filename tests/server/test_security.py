"""Who may ask: Host and Origin headers, keys, the page's own files, and what the log says."""

from __future__ import annotations

import http.client
import logging
import ssl
from pathlib import Path

import pytest

import refgpt
from refgpt.server import ServerSettings
from tests.helpers.servers import Served, make_certificate, serving
from tests.helpers.work import HANGS

BODY = {"prompt": "x", "max_tokens": 1, "seed": 1}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1", 200),
        ("127.8.9.1:80", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.1", 421),
        ("localhost@evil.example", 421),
        ("localhost:8080:80", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_known_hosts_are_served(server: Served, host: str, status: int) -> None:
    for path in ("/v1/models", "/health", "/", "/metrics"):
        assert server.ask("GET", path, host=host).status in (status, 404 if path == "/" and status == 200 else status)
    assert server.ask("POST", "/v1/completions", BODY, host=host).status == status


def test_other_hosts_can_be_allowed(model: refgpt.Model) -> None:
    with serving(model, allowed_hosts=("gpt.example.org",)) as server:
        assert server.ask("GET", "/v1/models", host="gpt.example.org:80").status == 200
        assert server.ask("GET", "/v1/models", host="evil.example").status == 421
    with serving(model, allowed_hosts=("*",)) as server:
        assert server.ask("GET", "/v1/models", host="evil.example").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(server: Served, headers: dict, status: int) -> None:
    for path in ("/v1/completions", "/tokenize"):
        answer = server.ask("POST", path, BODY, **headers)
        assert answer.status == status
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_the_own_page_may_ask(server: Served) -> None:
    host = f"127.0.0.1:{server.port}"
    assert server.ask("POST", "/v1/completions", BODY, host=host, origin=f"http://{host}").status == 200
    assert server.ask("OPTIONS", "/v1/completions", origin="https://evil.example").status == 403


def test_other_origins_can_be_allowed(model: refgpt.Model) -> None:
    with serving(model, allowed_origins=("https://good.example",)) as server:
        answer = server.ask("POST", "/v1/completions", BODY, origin="https://good.example", sec_fetch_site="cross-site")
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
        preflight = server.ask("OPTIONS", "/v1/completions", origin="https://good.example")
        assert preflight.status == 204 and "POST" in preflight.headers["access-control-allow-methods"]
        assert server.ask("POST", "/v1/completions", BODY, origin="https://evil.example").status == 403


def test_keys(model: refgpt.Model) -> None:
    with serving(model, api_keys=("first", "zweiter-Schlüssel")) as server:
        for path in ("/v1/models", "/metrics", "/tokenizer_info", "/api/v1/model", "/presets"):
            assert server.ask("GET", path).status == 401
            assert server.ask("GET", path, authorization="Bearer first").status == 200
        for wrong in ("Bearer ", "Bearer firs", "Bearer first2", "Basic first", "first", "Bearer \xff"):
            answer = server.ask("POST", "/v1/completions", BODY, authorization=wrong)
            assert answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        second = "zweiter-Schlüssel".encode().decode("latin-1")
        assert server.ask("POST", "/v1/completions", BODY, authorization=f"bearer {second}").status == 200
        assert server.ask("POST", "/v1/completions", BODY, x_api_key="first").status == 200
        assert server.ask("GET", "/health").status == 200 == server.ask("GET", "/version").status


def test_an_empty_key_is_none_where_none_is_needed(server: Served) -> None:
    assert server.ask("POST", "/v1/completions", BODY, authorization="Bearer ").status == 200
    assert server.ask("POST", "/v1/completions", BODY, authorization="Bearer").status == 200


def test_keys_of_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    from refgpt.cli import serve

    seen = []
    monkeypatch.setattr(serve, "check_installed", lambda: None)
    monkeypatch.setattr(serve, "serve", lambda model, settings, on_start, draft: seen.append(settings))
    monkeypatch.setenv("REFGPT_API_KEY", "one, two")
    (tmp_path / "keys").write_text("# whose\nthree\n\nfour \n")
    assert run("serve", "--api-key", "zero", "--api-key-file", tmp_path / "keys").code == 0
    assert seen[0].api_keys == ("zero", "one", "two", "three", "four")
    (tmp_path / "empty").write_text("\n")
    done = run("serve", "--api-key-file", tmp_path / "empty")
    assert done.code == 1 and "holds no keys" in done.err
    assert "there is no such file" in run("serve", "--api-key-file", tmp_path / "none").err


def test_keys_are_not_shown_in_errors() -> None:
    with pytest.raises(refgpt.ServerError) as fault:
        ServerSettings(api_keys=("secret\n",))
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize("path", ["/../settings.py", "/%2e%2e/settings.py", "//etc/passwd", "/page", "/%00", "/..\\x"])
def test_nothing_else_of_the_disk_is_served(server: Served, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status == 404 and b"import" not in answer.content and b"root:" not in answer.content


def test_files_of_the_page(model: refgpt.Model, tmp_path: Path) -> None:
    from refgpt.server.page_files import PageFiles

    (tmp_path / "icons").mkdir()
    (tmp_path / "index.html").write_text("<title>page</title>")
    (tmp_path / "icons" / "a.svg").write_text("<svg/>")
    (tmp_path / "code.py").write_text("")
    with serving(model, api_keys=("k",)) as server:
        server.running.config.loaded_app._page = PageFiles({"/": tmp_path})
        answer = server.ask("GET", "/")
        assert answer.status == 200 and answer.content == b"<title>page</title>"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert server.ask("GET", "/icons/a.svg").headers["content-type"] == "image/svg+xml"
        assert server.ask("HEAD", "/index.html").status == 200
        assert server.ask("GET", "/code.py").status in (401, 404)


def test_methods_and_paths_that_do_not_exist(server: Served) -> None:
    assert server.ask("GET", "/v1/completions").status == 405
    assert server.ask("GET", "/v1/completions").headers["allow"] == "POST"
    assert server.ask("DELETE", "/v1/models").status == 405
    missing = server.ask("POST", "/v1/nothing", {})
    assert missing.status == 404 and missing.json["error"]["code"] == "not_found"
    assert server.ask("GET", "/v1/models/").status == 200
    assert server.ask("GET", "/v1/models/other").status == 404


@pytest.mark.parametrize("asked", [True, False])
def test_prompts_are_logged_only_if_asked_for(
    model: refgpt.Model, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    caplog.set_level(logging.DEBUG, "refgpt.server")
    with serving(model, log_prompts=asked) as server:
        server.post("/v1/completions", prompt="a\x1b[31msecret", max_tokens=1, seed=1)
        server.post("/api/v1/generate", prompt="secret", max_length=1)
        server.ask("POST", "/v1/completions", {"prompt": ["secret", 1]})
        server.ask("POST", "/v1/completions", {"prompt": "x", "stop": {"secret": 1}})
        server.ask("GET", "/\x1b[31m".replace("\x1b", "%1b"))
    assert ("secret" in caplog.text) == asked
    assert "\x1b" not in caplog.text
    assert "prompt_tokens=" in caplog.text and "/v1/completions 200" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("max_slots", 0),
        ("timeout", -1),
        ("timeout", "long"),
        ("template", "nobody's"),
        ("log_format", "xml"),
        ("api_keys", "key"),
        ("allowed_hosts", ("",)),
        ("inspect", "yes"),
        ("host", None),
    ],
)
def test_settings_that_cannot_be_used(name: str, value: object) -> None:
    with pytest.raises(refgpt.ServerError, match=name):
        ServerSettings(**{name: value})


def test_a_server_for_others_without_keys_warns(model: refgpt.Model, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("starlette")
    from refgpt.server import running, serve

    def interrupted(self) -> None:
        raise refgpt.ServerError("far enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.Running, "serve", interrupted)
        with pytest.raises(refgpt.ServerError):
            serve(model, ServerSettings(host="0.0.0.0", port=0))
    assert "no key is needed" in caplog.text


def test_files_of_tls_that_cannot_be_used(model: refgpt.Model, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from refgpt.server import serve

    with pytest.raises(refgpt.ServerError, match="certificate"):
        serve(model, ServerSettings(port=0, ssl_certfile=str(tmp_path / "none.pem")))


def test_tls(model: refgpt.Model, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with serving(model, ssl_certfile=str(certificate), ssl_keyfile=str(key)) as server:
        trusted = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusted, timeout=HANGS)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        assert server.running.url.startswith("https://")
