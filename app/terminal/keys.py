"""Single keys from a terminal, which is afterwards as it was before."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

READ_BYTES = 64


@contextlib.contextmanager
def keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """`pressed` is called for each while the block runs; never where stdin is no terminal. Ctrl-C stays a signal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # not on Windows
    import tty

    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def read() -> None:
        for key in os.read(terminal, READ_BYTES).decode(errors="replace"):
            pressed(key)

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
