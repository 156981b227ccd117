"""A TCP proxy that cuts, delays, throttles, refuses or swallows answers when told to.

It runs in a thread of its own and stands between daemons and a broker whose listener tells clients
to come to the proxy. Knows no Kafka: what it forwards are bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 64 * 1024
_WITHIN_S: Final = 10.0
_SLICE_S: Final = 0.05


class Proxy:
    """Forwards connections from one local port to another, from `with` on.

    Parameters
    ----------
    port, target_port
        Where it listens on 127.0.0.1, and where it forwards to.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self.port, self._target = port, target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._delay_s = self._bytes_per_s = 0.0
        self._refusing = self._deaf = False
        self._server: asyncio.Server | None = None
        self.connections = self.cuts = 0

    @property
    def bootstrap(self) -> str:
        """Where its clients go."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection now; new ones are taken."""
        self._in_loop(self._cut)

    def refuse(self) -> None:
        """End every connection and take no new one until `mend`."""

        def begin() -> None:
            self._refusing = True
            self._cut()

        self._in_loop(begin)

    def delay(self, seconds: float) -> None:
        """Let every piece of data wait, in both directions, until `mend`."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Forward no more than this of each connection's requests, until `mend`; answers freely."""
        self._bytes_per_s = bytes_per_s

    def deafen(self) -> None:
        """Forward requests and swallow their answers until `mend`, which ends the connections."""
        self._deaf = True

    def mend(self) -> None:
        """Forward again as if nothing had been; connections that lost bytes end."""

        def end() -> None:
            if self._deaf:
                self._cut()
            self._refusing = self._deaf = False
            self._delay_s = self._bytes_per_s = 0.0

        self._in_loop(end)

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(_WITHIN_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WITHIN_S)
        self._loop.close()

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _in_loop(self, work: Callable[[], None]) -> None:
        """Do it on the loop's thread and wait for it."""

        async def call() -> None:
            work()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(_WITHIN_S)

    def _cut(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the broker is down
            writer.transport.abort()
            return
        both = {writer, upstream}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pump(reader, upstream, answers=False),
                self._pump(there, writer, answers=True),
            )
        finally:
            self._writers -= both
            for each in both:
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Forward one direction to its end, then end the other one too."""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                due = 0.0 if answers else len(data)
                while self._bytes_per_s and due > 0:
                    await asyncio.sleep(_SLICE_S)
                    due -= self._bytes_per_s * _SLICE_S
                if answers and self._deaf:
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
