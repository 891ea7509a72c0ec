"""Ctrl-C and SIGTERM as a request that a loop looks at."""

import os
import signal
import threading


class Interruption:
    """Remembers that the user or the system asked the run to stop; a second request stops at once.

    Outside of the main thread, which alone gets signals, it never remembers any.
    """

    def __init__(self, then: str):
        """`then`: what follows the steps under way, in words."""
        self.signal: int | None = None
        self._then = then

    def __enter__(self) -> "Interruption":
        handled = (signal.SIGINT, signal.SIGTERM)
        here = threading.current_thread() is threading.main_thread()
        self._before = {s: signal.signal(s, self._remember) for s in handled} if here else {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: it was not installed from Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _remember(self, number: int, _: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # Not print: the signal may have come in the middle of one.
        text = f"\nfinishing the current steps and {self._then} ... (again to stop at once)\n"
        os.write(2, text.encode())
