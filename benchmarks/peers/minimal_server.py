"""A minimal server that streams OpenAI's completions from CTranslate2, as a user would write it around the generator.

    python -m benchmarks.peers.minimal_server DIRECTORY PRECISION THREADS PORT

Requests that arrive within a moment become one batch, which runs to its end; those that come later wait for the next.
The ids of a prompt are the bytes of its text, as in the files of ``families.write_words``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Most texts of a batch, and seconds in which they may arrive.
MOST, WINDOW = 16, 0.02


@dataclass(eq=False)
class Asked:
    """A request; its tokens arrive in a queue, and None after the last."""

    ids: list[int]
    n_new: int
    tokens: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)


class MinimalServer:
    """Answers ``GET /health`` and streams ``POST /v1/completions``, greedily and without an end of text.

    Parameters
    ----------
    generator : ctranslate2.Generator
        Or any object with its ``generate_batch``.
    """

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._waiting: asyncio.Queue[Asked] = asyncio.Queue()

    async def serve(self, port: int) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        async with server:
            await self._run()

    async def _run(self) -> None:
        """Run batch after batch, in a thread of its own."""
        loop = asyncio.get_running_loop()
        while True:
            some = [await self._waiting.get()]
            await asyncio.sleep(WINDOW)
            while len(some) < MOST and not self._waiting.empty():
                some.append(self._waiting.get_nowait())
            await loop.run_in_executor(None, self._generate, some, loop)

    def _generate(self, batch: Sequence[Asked], loop: asyncio.AbstractEventLoop) -> None:
        def arrived(step: Any) -> bool:
            asked = batch[step.batch_id]
            if step.step < asked.n_new:
                loop.call_soon_threadsafe(asked.tokens.put_nowait, step.token)
            if step.step == asked.n_new - 1:
                loop.call_soon_threadsafe(asked.tokens.put_nowait, None)
            return False

        most = max(asked.n_new for asked in batch)
        self._generator.generate_batch(
            [[f"<{i}>" for i in asked.ids] for asked in batch],
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            min_length=most,
            max_length=most,
            callback=arrived,
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            if head[0].startswith("GET "):
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}")
                return
            lengths = [line.partition(":")[2] for line in head if line.lower().startswith("content-length:")]
            body = json.loads(await reader.readexactly(int(lengths[0])))
            asked = Asked(list(body["prompt"].encode()), body["max_tokens"])
            self._waiting.put_nowait(asked)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            n = 0
            while (token := await asked.tokens.get()) is not None:
                n += 1
                reason = "length" if n == asked.n_new else None
                writer.write(_event({"choices": [{"index": 0, "text": token, "finish_reason": reason}]}))
                await writer.drain()
            writer.write(b"data: [DONE]\n\n")
        finally:
            writer.close()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def main() -> None:
    """Load the model and serve it."""
    import ctranslate2

    directory, precision, threads, port = sys.argv[1:]
    generator = ctranslate2.Generator(
        directory, device="cpu", compute_type=precision, inter_threads=1, intra_threads=int(threads)
    )
    asyncio.run(MinimalServer(generator).serve(int(port)))


if __name__ == "__main__":
    main()
