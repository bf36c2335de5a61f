"""Measures the speed of a model on this machine, and compares it with the machine's memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, stdev

import numpy as np

from refgpt._common.arguments import collected, whole_number
from refgpt._common.errors import GenerationError
from refgpt.kernels import row_sum
from refgpt.runtime import Runtime

#: More bytes than any cache holds.
BEYOND_CACHES = 256 << 20


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes
    ----------
    test : str
        "pp512": a prompt of 512 tokens. "tg128": 128 tokens generated one by one after one token; "tg128@1024": after
        1024 tokens.
    rates : tuple of float
        Tokens per second, one for each repetition.
    n_read : int
        Bytes read per step: weights, and the average size of the keys and values before it. 0 for prompts, which are
        bound by arithmetic.
    read_rates : tuple of float
        Memory bandwidth in bytes per second, measured just before each repetition.
    """

    test: str
    rates: tuple[float, ...]
    n_read: int
    read_rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Median tokens per second."""
        return median(self.rates)

    @property
    def spread(self) -> float:
        """Standard deviation of the rates; 0 of a single one."""
        return stdev(self.rates) if len(self.rates) > 1 else 0.0

    @property
    def share(self) -> float:
        """Share of the memory bandwidth that a step reached, as the median over repetitions; 0 for prompts."""
        return median(rate * self.n_read / read for rate, read in zip(self.rates, self.read_rates, strict=True))


def read_rate(threads: int, buffer: np.ndarray) -> float:
    """Bytes per second that ``threads`` threads read from a buffer [n, m] float32."""
    start = time.perf_counter()
    row_sum(buffer, threads=threads)
    return buffer.nbytes / (time.perf_counter() - start)


def measure(
    engine: Runtime,
    prompts: Sequence[int] = (512,),
    writes: Sequence[int] = (128,),
    depths: Sequence[int] = (0,),
    repetitions: int = 5,
) -> Iterator[Measurement]:
    """Measure prompts of given lengths, and the generation of given numbers of tokens after given depths.

    Parameters
    ----------
    engine : Runtime
    prompts, writes : sequence of int
        Numbers of tokens.
    depths : sequence of int
        Number of tokens in the context when generation begins; 0 means one token.
    repetitions : int
        Measured runs of each test, after a warm-up run.

    Raises
    ------
    GenerationError
        If a number makes no sense or a text does not fit the model's context; at the call, before any is run.
    """
    prompts, writes, depths, repetitions = check_sizes(engine.config.n_ctx, prompts, writes, depths, repetitions)
    return _measure(_Timer(engine, repetitions), prompts, writes, depths)


def check_sizes(
    n_ctx: int, prompts: Sequence[int], writes: Sequence[int], depths: Sequence[int], repetitions: int
) -> tuple[list[int], list[int], list[int], int]:
    """The arguments of ``measure``, once it is known that they can be used. Its errors."""
    repetitions = whole_number("repetitions", repetitions, 1, 1000, GenerationError)
    n_prompts, n_writes, n_depths = (
        [
            whole_number(name, value, least, n_ctx, GenerationError)
            for value in collected(name, values, "a list of numbers of tokens", GenerationError)
        ]
        for name, least, values in (("prompts", 1, prompts), ("writes", 1, writes), ("depths", 0, depths))
    )
    longest = max([*n_prompts, *(max(depth, 1) + n for depth in n_depths for n in n_writes)], default=0)
    if longest > n_ctx:
        raise GenerationError(
            "the text would not fit the model's context",
            got=f"{longest} tokens",
            wanted=f"at most {n_ctx}",
            fix="write fewer tokens, or start less deep",
        )
    return n_prompts, n_writes, n_depths, repetitions


def _measure(timer: _Timer, prompts: list[int], writes: list[int], depths: list[int]) -> Iterator[Measurement]:
    for n in prompts:
        yield timer.prompt(n)
    for depth in depths:
        for n in writes:
            yield timer.write(n, depth)


class _Timer:
    """Runs and times one test after the other."""

    def __init__(self, engine: Runtime, repetitions: int) -> None:
        self._engine, self._repetitions = engine, repetitions
        self._ids = np.random.default_rng(0).integers(0, engine.config.n_vocab, engine.config.n_ctx).tolist()
        self._buffer = np.ones((64, BEYOND_CACHES // 256), np.float32)

    def prompt(self, n: int) -> Measurement:
        session = self._engine.session(1, n)

        def read() -> None:
            session.prefill(0, self._ids[:n])

        return self._repeat(f"pp{n}", n, 0, lambda: None, read)

    def write(self, n: int, depth: int) -> Measurement:
        start = max(depth, 1)
        session = self._engine.session(1, start + n)

        def prepare() -> None:
            session.prefill(0, self._ids[:start])

        def write() -> None:
            for token in self._ids[start : start + n]:
                session.decode([0], [token])

        n_read = self._engine.bytes_per_token + self._engine.cache_bytes(start + n // 2)
        return self._repeat(f"tg{n}" + (f"@{depth}" if depth else ""), n, n_read, prepare, write)

    def _repeat(
        self, test: str, n_tokens: int, n_read: int, prepare: Callable[[], None], run: Callable[[], None]
    ) -> Measurement:
        rates, reads = [], []
        for _ in range(self._repetitions + 1):
            prepare()
            reads.append(read_rate(self._engine.threads, self._buffer))
            start = time.perf_counter()
            run()
            rates.append(n_tokens / (time.perf_counter() - start))
        return Measurement(test, tuple(rates[1:]), n_read, tuple(reads[1:]))
