"""Counters, gauges and histograms, and Prometheus's text form of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from refgpt.generation.prefix_cache import PrefixCache
from refgpt.runtime.engine import Session

#: Upper bounds of histograms of seconds.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Counter:
    """A number that only grows, one for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help = name, help
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, n: float = 1, *labels: str) -> None:
        """Count ``n`` more."""
        self._values[labels] = self._values.get(labels, 0) + n

    def value(self, *labels: str) -> float:
        """The count so far."""
        return self._values.get(labels, 0)

    def lines(self) -> list[str]:
        """Its samples."""
        return [f"{self.name}{_braces(self._labels, labels)} {value:.15g}" for labels, value in self._values.items()]


class Gauge:
    """A number that is computed when it is read."""

    def __init__(self, name: str, help: str, read: Callable[[], float], kind: str = "gauge") -> None:
        self.name, self.help, self.kind, self._read = name, help, kind, read

    def lines(self) -> list[str]:
        """Its sample."""
        return [f"{self.name} {self._read():.15g}"]


class Histogram:
    """Counts durations by upper bounds."""

    kind = "histogram"

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self) -> list[str]:
        """Its samples: each bucket counts the smaller ones too."""
        found, total = [], 0
        for bound, n in zip([*(f"{one:g}" for one in SECONDS), "+Inf"], self._counts, strict=True):
            total += n
            found.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{self.name}_sum {self._sum:.9g}", f"{self.name}_count {total}"]


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.requests = Counter("refgpt_requests_total", "Requests answered.", ("path", "status"))
        self.prompt_tokens = Counter("refgpt_prompt_tokens_total", "Tokens of prompts.")
        self.generated_tokens = Counter("refgpt_generated_tokens_total", "Tokens generated.")
        self.adapter_tokens = Counter("refgpt_adapter_tokens_total", "Those with an adapter.", ("adapter",))
        self.failures = Counter(
            "refgpt_failures_total", "Failures of the scheduler, and steps that did not return in time."
        )
        self.first_token = Histogram("refgpt_time_to_first_token_seconds", "From a request to its first token.")
        self.next_token = Histogram("refgpt_time_between_tokens_seconds", "From a token of a request to its next.")
        self.seconds = Histogram("refgpt_request_seconds", "From a request to the end of its answer.")
        self.gauges: list[Gauge] = []

    def token_written(self, seconds: float, first: bool, adapter: str | None = None) -> None:
        """Count a token, its adapter, and the seconds since the one before it or since its request."""
        self.generated_tokens.add()
        if adapter is not None:
            self.adapter_tokens.add(1, adapter)
        (self.first_token if first else self.next_token).add(seconds)

    def text(self) -> str:
        """Everything, in Prometheus's text form."""
        counted: list[Counter | Gauge | Histogram] = [self.requests, self.prompt_tokens, self.generated_tokens]
        counted += [self.adapter_tokens, self.failures, *self.gauges, self.first_token, self.next_token, self.seconds]
        lines = []
        for metric in counted:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


class CountingCache(PrefixCache):
    """A prefix cache that counts the prompt tokens that it provided."""

    n_found = 0

    def fill(self, session: Session, slot: int, ids: Sequence[int]) -> int:
        """See ``PrefixCache.fill``."""
        n = super().fill(session, slot, ids)
        self.n_found += n
        return n


def _braces(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
