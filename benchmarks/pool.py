"""What more processor cores would give: a model of a pass, its predictions, and a command that checks them.

    python -m benchmarks.pool [--bandwidth 50,100,200,400]
    python -m benchmarks.pool --check

A pass is a list of kernel calls, one after another. ``parallel.c`` deals each of them to the threads in pieces. The
time with n threads is predicted from what is measured with one thread here:

    outside + sum over calls (seconds * ceil(pieces / n) / pieces) + calls in several pieces * join * (n - 1)

and products with weights, together, take at least their bytes / min(n * read, bandwidth). *outside* is Python between
the calls, *join* what a call costs more for each further thread, *read* one thread's rate of reading memory, and
*bandwidth* the whole machine's, which nobody can know from few cores: it is an option.

*join* is measured with calls of one equal piece for each thread, with 2 threads and with 2 and 4 for each core: with
more threads than cores the ideal time is that of as many rounds of pieces as the cores need. What one thread does is
measured in its processor time, everything else by the clock.

``--check`` measures every number of threads up to this machine's cores and shows predictions beside measurements. On a
machine with several NUMA nodes run it under ``numactl --interleave=all``, so that memory of all nodes is read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import median
from typing import Any

import numpy as np

from benchmarks.peers.processors import read_buffer, read_rate
from benchmarks.quick import WIDTHS, rounds, sized
from refgpt import ModelConfig, kernels
from refgpt.kernels import Program, check_threads
from refgpt.kernels.native import lib
from refgpt.kernels.threads import default_threads
from refgpt.runtime import Runtime
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.spec.gptj import Params, leaf_shapes

#: Passes by name: rows of a prompt. One row is a step of decoding.
PASSES = {"decode": 1, "prompt of 128": 128}
CORES = (4, 8, 16, 32, 64)
BANDWIDTHS = (50.0, 100.0, 200.0, 400.0)  # GB/s: two channels of DDR4, ... twelve of DDR5
#: A call of the measurement of *join*: rows, outputs for each thread, and inputs of a product; about 20 microseconds.
ROWS, OUT, IN = sized((32, 64, 512), (2, 16, 32))
CALLS = 20
Clock = Callable[[], float]


@dataclass(frozen=True)
class Call:
    """A kernel call: whether it reads weights, its seconds with one thread, and into how many pieces it can be cut."""

    reads_weights: bool
    seconds: float
    pieces: int

    def ideal(self, n: int) -> float:
        """Seconds with n threads that cost nothing and read as fast as they ask."""
        return self.seconds * ceil(self.pieces / n) / self.pieces


@dataclass(frozen=True)
class Pass:
    """The calls of a pass, as they are cut for some number of threads; seconds outside of them; bytes of weights."""

    calls: tuple[Call, ...]
    outside: float
    n_bytes: int

    @property
    def serial_share(self) -> float:
        """Of the time with one thread, the part that no second thread can shorten."""
        alone = self.outside + sum(call.seconds for call in self.calls if call.pieces == 1)
        return alone / (self.outside + sum(call.seconds for call in self.calls))


def predicted(pass_: Pass, n: int, join: float, read: float, bandwidth: float) -> float:
    """Seconds of a pass with n threads. ``join`` in seconds, rates in bytes per second."""
    products = sum(call.ideal(n) for call in pass_.calls if call.reads_weights)
    others = sum(call.ideal(n) for call in pass_.calls if not call.reads_weights)
    reading = pass_.n_bytes / min(n * read, bandwidth) if n > 1 else 0.0  # one thread was measured
    dealt = sum(call.pieces > 1 for call in pass_.calls)
    return pass_.outside + max(products, reading) + others + dealt * join * (n - 1)


def join_of(overheads: dict[int, float]) -> float:
    """What a call costs more for each further thread, from what calls with some numbers of threads cost more."""
    return max(0.0, median(seconds / (n - 1) for n, seconds in overheads.items()))


def seconds(work: Callable[[], Any], n_rounds: int, clock: Clock = time.perf_counter) -> float:
    """The median."""
    times = []
    work()
    for _ in range(n_rounds):
        start = clock()
        work()
        times.append(clock() - start)
    return median(times)


def overhead(n: int, cores: int) -> float:
    """Seconds that a call of one piece for each of n threads takes longer than its pieces."""
    rng = np.random.default_rng(0)
    x, out = rng.standard_normal((ROWS, IN), np.float32), np.empty((ROWS, n * OUT), np.float32)
    w = kernels.pack(rng.standard_normal((n * OUT, IN), np.float32).astype(np.float16))
    one, many = Program(), Program()
    kernels.linear(x, w, out=out, program=one)
    one.run(1)  # packs the rows, if there are so many that this pays
    kernel, struct, values, n_items, _ = one.calls[-1]
    for _ in range(CALLS):
        many.add(kernel, struct, values, n_items, n_items // n)
    piece = seconds(lambda: many.run(1), rounds(101), time.thread_time) / CALLS / n
    return seconds(lambda: many.run(n), rounds(101)) / CALLS - piece * ceil(n / min(n, cores))


def recorded(engine: Runtime, threads: int, ids: Sequence[int]) -> tuple[Program, np.ndarray]:
    """The calls of a pass over these tokens, cut for a number of threads, and where its logits will be."""
    program, n, config = Program(), len(ids), engine.config
    engine.threads = threads
    cache = KVCache(config, 1, n, engine.kv_dtype)
    cache.make_writable(0, n)
    slots, positions = np.zeros(n, np.int64), np.arange(n)
    batch = Batch.of(np.array(ids), slots, positions, 0, config.window, cache.tables, cache.block)
    if n > 1:
        batch = batch.with_logit_rows(slice(n - 1, n))
    buffers = Buffers.of(config, n, cache.padded_capacity, threads)
    tables = engine.tables(n)
    logits = engine.family.forward(engine.params, config, batch, cache, tables, buffers, program=program)
    return program, logits


def call_seconds(program: Program, n_rounds: int) -> list[float]:
    """Each call's with one thread, in their order, so that each finds in the caches what it finds in a pass."""
    program.run(1)
    times: list[list[float]] = [[] for _ in program.calls]
    for _ in range(n_rounds):
        for (kernel, struct, _, n_items, grain), found in zip(program.calls, times, strict=True):
            start = time.thread_time()
            lib.refgpt_run(kernel.run, struct, n_items, grain, 1)
            found.append(time.thread_time() - start)
    return [median(found) for found in times]


class Measured:
    """What one thread gives on this machine, for one kind of pass."""

    def __init__(self, engine: Runtime, n_rows: int) -> None:
        self.engine, self.ids = engine, [7 * i % engine.config.n_vocab for i in range(n_rows)]
        n_rounds = rounds(25 if n_rows == 1 else 5)
        program, _ = recorded(engine, 1, self.ids)
        self.times = call_seconds(program, n_rounds)
        self.outside = max(0.0, self.whole(1, n_rounds, time.thread_time) - sum(self.times))

    def whole(self, threads: int, n_rounds: int, clock: Clock = time.perf_counter) -> float:
        """Seconds of a pass with so many threads, measured."""
        self.engine.threads = threads
        session = self.engine.session(1, len(self.ids))
        return seconds(lambda: session.prefill(0, self.ids), n_rounds, clock)

    def cut(self, threads: int) -> Pass:
        """The pass as it would be cut for so many threads."""
        calls = recorded(self.engine, threads, self.ids)[0].calls
        return Pass(
            tuple(
                Call(kernel.op.startswith("linear"), one, ceil(n_items / grain))
                for (kernel, _, _, n_items, grain), one in zip(calls, self.times, strict=True)
            ),
            self.outside,
            self.engine.bytes_per_token,
        )


def random_engine(n_layer: int) -> Runtime:
    """GPT-J-6B's width, in 4 bits."""
    config = ModelConfig(n_layer=n_layer, **WIDTHS)
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16) * np.float16(0.02)
    leaves = {
        name: np.resize(block, shape) if len(shape) > 1 else np.ones(shape, np.float16) * np.float16(0.1)
        for name, shape in leaf_shapes(config).items()
    }
    return Runtime(Params.from_leaves(leaves, n_layer), config, dtype="q4", kv_dtype="f16", threads=1)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("", f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns), sep="\n")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def read_rates(counts: Sequence[int]) -> dict[int, float]:
    """GB/s of reading memory with these numbers of threads and with one."""
    buffer = read_buffer()
    alone = seconds(partial(kernels.row_sum, buffer, threads=1), rounds(5), time.thread_time)
    return {1: buffer.nbytes / alone / 1e9} | {n: read_rate(buffer, n) for n in counts if n > 1}


def predictions(measured: dict[str, Measured], join: float, read: float, bandwidths: Sequence[float]) -> None:
    """Print tokens per second by cores, for each rate of the whole machine's memory in GB/s."""
    columns = [(name, n_rows, rate) for name, n_rows in PASSES.items() for rate in bandwidths]
    rows = []
    for n in CORES:
        passes = {name: one.cut(n) for name, one in measured.items()}
        times = [predicted(passes[name], n, join, read, 1e9 * rate) for name, _, rate in columns]
        rows.append([str(n), *(f"{c[1] / time_:.1f}" for c, time_ in zip(columns, times, strict=True))])
    print_table(["cores", *(f"{name}, {rate:.0f} GB/s" for name, _, rate in columns)], rows)


def whole_passes(measured: dict[str, Measured], counts: Sequence[int]) -> dict[tuple[str, int], float]:
    """Seconds of each pass with each of these numbers of threads."""
    n_rounds = {name: rounds(15 if n_rows == 1 else 5) for name, n_rows in PASSES.items()}
    return {(name, n): one.whole(n, n_rounds[name]) for n in counts for name, one in measured.items()}


def check(
    measured: dict[str, Measured],
    wholes: dict[tuple[str, int], float],
    join: float,
    rates: dict[int, float],
    bandwidth: float,
) -> None:
    """Print predictions beside measurements, for each number of threads whose rate of reading was measured."""
    rows = []
    for n in rates:
        row = [str(n), f"{min(n * rates[1], bandwidth):.1f} / {rates[n]:.1f}"]
        for name, n_rows in PASSES.items():
            guess = n_rows / predicted(measured[name].cut(n), n, join, 1e9 * rates[1], 1e9 * bandwidth)
            found = n_rows / wholes[name, n]
            row.append(f"{guess:.1f} / {found:.1f} ({found / guess:.2f})")
        rows.append(row)
    print_table(
        ["threads", "GB/s, predicted / measured", *(f"{name}, the same and their ratio" for name in PASSES)], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict what more cores would give, or check the predictions.")
    parser.add_argument(
        "--check", action="store_true", help="measure every number of threads up to this machine's cores"
    )
    parser.add_argument("--bandwidth", help="GB/s of the whole machine (default: 50,100,200,400; --check: measured)")
    parser.add_argument("--layers", type=int, default=sized(4, 1), help="of GPT-J's 28 (default: 4)")
    parser.add_argument("--threads", type=int, help="with --check: the most (default: this machine's cores)")
    arguments = parser.parse_args()
    cores = default_threads()
    most = check_threads(arguments.threads or cores) if arguments.check else min(2, cores)
    rates = read_rates(range(1, most + 1))
    engine = random_engine(arguments.layers)
    measured = {name: Measured(engine, n_rows) for name, n_rows in PASSES.items()}
    wholes = whole_passes(measured, list(rates) if arguments.check else [])
    overheads = {n: overhead(n, cores) for n in sorted({2, 2 * cores, 4 * cores})}
    join = join_of(overheads)

    print(f"{cores} cores here; {arguments.layers} layers of GPT-J-6B's width in 4 bits\n")
    print("memory is read at " + ", ".join(f"{rate:.1f} GB/s by {n}" for n, rate in rates.items()))
    print("a call costs more: " + ", ".join(f"{1e6 * over:.1f} us with {n} threads" for n, over in overheads.items()))
    print(f"that is {1e6 * join:.2f} us for each further thread")
    for name, one in measured.items():
        pass_ = one.cut(max(CORES))
        dealt = sum(call.pieces > 1 for call in pass_.calls)
        print(f"{name}: {len(pass_.calls)} calls, {dealt} in several pieces; serial: {pass_.serial_share:.2%}")
    given = [float(number) for number in (arguments.bandwidth or "").split(",") if number]
    if arguments.check:
        check(measured, wholes, join, rates, given[0] if given else max(rates.values()))
    else:
        predictions(measured, join, 1e9 * rates[1], given or BANDWIDTHS)


if __name__ == "__main__":
    main()
