"""Ray's own protection, as docs/reference/cluster.md describes it: tokens, and TLS."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.ray_cluster import LOOPBACK, ROOT, wait_until
from tests.helpers.work import HANGS

pytest.importorskip("ray", reason='needs the extra "ray"')

RIGHT, WRONG = "a" * 64, "b" * 64
ASK = """
import sys
from refgpt import RefgptError
from refgpt.cluster.connect import connected
try:
    with connected(sys.argv[1]):
        import ray
        print("nodes:", len(ray.nodes()))
except RefgptError as fault:
    print("refused:", fault)
"""


def environment(**more):
    left = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return {**left, **LOOPBACK, "PYTHONPATH": path, **more}


@contextmanager
def head(**variables):
    """The head of a cluster with these variables in its environment. -> its address"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--node-ip-address", "127.0.0.1", "--num-cpus", "0", "--include-dashboard", "false"]
    options += ["--object-store-memory", "80000000", "--disable-usage-stats", "--block"]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as place:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--temp-dir", place, *options]
        log = Path(place) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(**variables))
        try:
            wait_until(lambda: process.poll() is not None or b"Ray runtime started" in log.read_bytes())
            assert process.poll() is None, log.read_text(errors="replace")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def ask(address, **variables):
    """What a process with these variables in its environment is told."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address],
        env=environment(RAY_gcs_server_port_wait_time_s="1", **variables),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    return done.stdout + done.stderr


def test_a_wrong_token_is_refused():
    with head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=RIGHT) as address:
        assert "nodes: 1" in ask(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=RIGHT)
        told = ask(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=WRONG)
        assert "nodes" not in told and "refused: " in told and "token" in told
        assert "nodes" not in ask(address, RAY_AUTH_MODE="disabled")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_only_processes_with_a_certificate_of_the_cluster_are_let_in(tmp_path):
    def certificate(name):
        key, file = tmp_path / f"{name}.key", tmp_path / f"{name}.crt"
        about = ["-subj", "/CN=ray", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *about]
        subprocess.run([*command, "-keyout", key, "-out", file], check=True, capture_output=True)
        names = {"RAY_TLS_SERVER_CERT": file, "RAY_TLS_SERVER_KEY": key, "RAY_TLS_CA_CERT": file}
        return {"RAY_USE_TLS": "1", "RAY_AUTH_MODE": "disabled", **{name: str(path) for name, path in names.items()}}

    right, other = certificate("right"), certificate("other")
    with head(**right) as address:
        assert "nodes: 1" in ask(address, **right)
        assert answered(address, right)
        assert not answered(address, other) and not answered(address, None) and not answered(address, {})


def answered(address, certificate):
    """Whether the server speaks HTTP/2 with a client of a certificate; {}: TLS without one, None: without TLS."""
    host, port = address.split(":")
    stream = socket.create_connection((host, int(port)), HANGS)
    try:
        if certificate is not None:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            if certificate:
                context.load_cert_chain(certificate["RAY_TLS_SERVER_CERT"], certificate["RAY_TLS_SERVER_KEY"])
            stream = context.wrap_socket(stream)
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return stream.recv(9)[3:4] == b"\x04"  # a frame of settings
    except OSError:
        return False
    finally:
        stream.close()
