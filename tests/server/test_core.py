"""The thread of the scheduler: its failures end every request with an error, and requests that are over get nothing."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import refgpt
from tests.helpers.servers import Served, serving

LONG = {"prompt": "Once upon a time", "max_tokens": 480, "ignore_eos": True, "seed": 1}
SHORT = {"prompt": "Once upon a time", "max_tokens": 3, "seed": 1}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "ignore_eos": True, "seed": 1}


class Killed(BaseException):
    """What no ``except Exception`` catches."""


def raising(error: BaseException) -> Callable[..., None]:
    def raises(*arguments: object) -> None:
        raise error

    return raises


@pytest.fixture
def core_module(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("starlette")
    from refgpt.server import core

    monkeypatch.setattr(core, "RETRY", 0.01)
    return core


def broken_off(server: Served, fault: Callable[..., None]) -> list:
    """Answers to a running stream, a running text and waiting ones, which ``fault`` cuts off in a step."""
    core = server.state.core
    pool = ThreadPoolExecutor(4)
    go_on, step = threading.Event(), core._scheduler.step

    def failing_step() -> list:
        if not go_on.is_set():
            return step()
        return fault()

    core._scheduler.step = failing_step
    asked = [
        pool.submit(server.ask, "POST", "/v1/completions", LONG | {"stream": True}),
        pool.submit(server.ask, "POST", "/v1/completions", LONG),
        pool.submit(server.ask, "POST", "/api/v1/generate", {"prompt": "x", "max_length": 400, "ban_eos_token": True}),
        pool.submit(server.ask, "POST", "/v1/chat/completions", CHAT),
    ]
    server.wait_until(lambda: core.n_open == 4 and core.n_running > 0)
    go_on.set()
    return [one.result() for one in asked]


def errors_in(answers: list) -> list[str]:
    """The messages of all answers, each of which has to be one error."""
    found = []
    for answer in answers:
        if answer.status == 200:  # the stream had begun
            events = [line[6:] for line in answer.content.decode().split("\n") if line.startswith("data: ")]
            assert events[-1] == "[DONE]"
            found.append(json.loads(events[-2])["error"]["message"])
        else:
            assert answer.status in (500, 503)
            found.append(answer.json["detail"]["msg"] if "detail" in answer.json else answer.json["error"]["message"])
    return found


def test_all_is_told_while_no_new_scheduler_can_be_made(
    model: refgpt.Model, core_module, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []  # the records that pytest keeps would keep the old scheduler too, by their tracebacks
    monkeypatch.setattr(core_module.log, "exception", lambda text, *arguments: logged.append(text))
    with serving(model, max_slots=2) as server:
        want = server.post("/v1/completions", **SHORT)["choices"]
        core = server.state.core
        make, possible, old = core._new_scheduler, threading.Event(), weakref.ref(core._scheduler._session)
        kept: list[bool] = []

        def failing_make():
            if not possible.is_set():
                raise MemoryError("no room")
            gc.collect()
            kept.append(old() is not None)
            return make()

        monkeypatch.setattr(core, "_new_scheduler", failing_make)
        messages = errors_in(broken_off(server, raising(RuntimeError("secret"))))
        assert len(messages) == 4 and all(message and "secret" not in message for message in messages)
        server.wait_until(lambda: core.failed)
        assert core.n_open == core.n_running == core.n_waiting == 0
        health = server.ask("GET", "/health")
        assert health.status == 503 and health.json["status"] == "unavailable" and "log" in health.json["reason"]
        for path, form in (("/v1/completions", "error"), ("/api/v1/generate", "detail"), ("/complete", "error")):
            refused = server.ask("POST", path, {"prompt": "x", "context": "x"})
            assert refused.status == 503 and form in refused.json and int(refused.headers["retry-after"]) > 0
        assert "\nrefgpt_requests_running 0\n" in server.ask("GET", "/metrics").content.decode()
        assert server.state.metrics.failures.value() >= 2
        possible.set()
        server.wait_until(lambda: server.ask("GET", "/health").status == 200)
        assert kept == [False]  # two schedulers at once might be what there is no memory for
        assert server.post("/v1/completions", **SHORT)["choices"] == want
    assert any(text.startswith("no new scheduler can be made") for text in logged)


def test_a_server_without_a_scheduler_ends_in_order(
    model: refgpt.Model, core_module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model) as server:
        monkeypatch.setattr(server.state.core, "_new_scheduler", raising(MemoryError("no room")))
        errors_in(broken_off(server, raising(RuntimeError("broke"))))
        server.wait_until(lambda: server.state.core.failed)
    assert not server.state.core._thread.is_alive()


def test_requests_do_not_wait_for_a_thread_that_has_ended(model: refgpt.Model, core_module) -> None:
    with serving(model, max_slots=2) as server:
        assert len(errors_in(broken_off(server, raising(Killed())))) == 4
        server.wait_until(lambda: not server.state.core._thread.is_alive())
        assert server.ask("GET", "/health").json["status"] == "unavailable"
        assert server.ask("POST", "/v1/completions", SHORT).json["error"]["code"] == "unavailable"


def test_a_failing_command_ends_the_requests_behind_it(model: refgpt.Model, core_module) -> None:
    with serving(model) as server:
        server.state.core._scheduler.cancel = raising(RuntimeError("broke"))
        server.send("/v1/completions", **LONG).close()  # whoever leaves is cancelled
        server.wait_until(lambda: server.state.metrics.failures.value() == 1)
        assert server.post("/v1/completions", **SHORT)["choices"]
        assert server.state.core.n_running == 0


def test_events_that_cannot_be_handed_on_end_the_requests(
    model: refgpt.Model, core_module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.state.metrics, "token_written", raising(RuntimeError("secret")))
            answer = server.ask("POST", "/v1/completions", LONG)
            assert answer.status == 500 and "secret" not in answer.json["error"]["message"]
        server.wait_until(lambda: server.state.core.n_running == 0)  # it is not written for nobody
        assert server.post("/v1/completions", **SHORT)["choices"]


def test_a_job_that_failed_before_it_is_read_is_no_finished_text(model: refgpt.Model, core_module) -> None:
    import asyncio

    from refgpt.generation import GenerationParams
    from refgpt.server import ServerSettings
    from refgpt.server.errors import ApiError
    from refgpt.server.metrics import Metrics

    async def run() -> None:
        core = core_module.Core(model, ServerSettings(), Metrics())
        with pytest.raises(ApiError):  # its thread does not run
            core.submit([[5]], GenerationParams())
        core.start(asyncio.get_running_loop())
        job = core.submit([[5]], GenerationParams(max_new_tokens=400, ignore_eos=True, seed=1))
        await job.until_accepted()
        core._scheduler.step = raising(RuntimeError("broke"))
        while core.n_open:
            await asyncio.sleep(0.001)
        with pytest.raises(ApiError):
            async for _ in job.events():
                pass
        core.stop()

    asyncio.run(run())


def test_work_beside_the_scheduler_outlives_its_failures(model: refgpt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(type(model.engine), "states", raising(Killed()))
            assert server.ask("POST", "/v1/embeddings", {"input": "x"}).status == 500
        assert server.post("/v1/embeddings", input="x")["data"]


def test_events_of_a_step_that_ends_after_its_request_was_cancelled(model: refgpt.Model, core_module) -> None:
    """They count no tokens, wake nobody, and leave the number of open texts as it is."""
    import asyncio

    from refgpt.generation import GenerationParams
    from refgpt.server import ServerSettings
    from refgpt.server.metrics import Metrics

    async def run() -> None:
        metrics, told = Metrics(), []
        core = core_module.Core(model, ServerSettings(), metrics)
        step, dispatch = core._scheduler.step, core._dispatch
        begun, go_on = threading.Event(), threading.Event()

        def held_step() -> list:
            begun.set()
            go_on.wait()
            return step()

        core._scheduler.step = held_step
        core._dispatch = lambda events, now: (dispatch(events, now), told.extend(events))
        core.start(asyncio.get_running_loop())
        job = core.submit([[5]], GenerationParams(max_new_tokens=1, ignore_eos=True, seed=1))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        job.cancel()
        go_on.set()
        while not told:
            await asyncio.sleep(0.001)
        assert [event.finish_reason for _, _, event in told] == ["length"]
        assert metrics.generated_tokens.value() == 0
        assert not job.new_events and not job.wake.is_set()
        assert job.n_open == core.n_open == 0
        core.stop()

    asyncio.run(run())
