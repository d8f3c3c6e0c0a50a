"""How a connection ends that a client, or a balancer before it, might use again: told in time, in one segment with the
answer's end, and never behind a request that has just come.
"""

import asyncio
import contextlib
import os
import select
import socket
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LAST_CHUNK: Final = b"0\r\n\r\n"


class Parting:
    """The transport of the last answer of a connection: uvicorn would close it before the client is seen off."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        transport = cycle.transport
        self.write, self.is_closing = transport.write, transport.is_closing
        self._close = transport.close
        self._cycle = cycle

    def close(self) -> None:
        if not self._cycle.more_body:
            self._close()


class Unannounced(Parting):
    """The same where the head has left, and did not say `Connection: close`. The end of the answer and that of the
    connection leave in one segment: a balancer that saw the first alone would send its next request, to nobody.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        super().__init__(cycle)
        self._write, self.write = self.write, self._corked
        self._socket: Any = cycle.transport.get_extra_info("socket")

    def _corked(self, data: Any) -> None:
        if data.endswith(LAST_CHUNK) and hasattr(socket, "TCP_CORK"):
            with contextlib.suppress(OSError):  # it has just been lost
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self._write(data)


def shut(transport: asyncio.Transport) -> bool:
    """Tells the peer at once that this is the end, not a turn of the loop later; unless something has come by now."""
    poll, number = select.poll(), transport.get_extra_info("socket").fileno()
    poll.register(number, select.POLLIN)
    if poll.poll(0):
        return False
    with socket.socket(fileno=os.dup(number)) as same, contextlib.suppress(OSError):
        same.shutdown(socket.SHUT_WR)
    return True
