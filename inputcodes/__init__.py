"""The machinery behind the commands: one idea, one file; nothing here imports a command.

A command imports this package before all else: its imports take seconds, and Ctrl-C in them is to
be one line as it is later (configurator.run_main).
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from inputcodes.configurator import ROOT, exit_interrupted

STARTED_BY = os.getppid()  # by now; it may end while PyTorch is imported


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """End at once while a module is imported: there KeyboardInterrupt is lost, or hidden."""
    place = frame
    while place:
        if place.f_code.co_filename.startswith("<frozen importlib"):
            exit_interrupted(at_once=True)
        place = place.f_back
    signal.default_int_handler(number, frame)


# Only where a command of this program runs (of `python -m`, argv is not yet complete here).
_script = getattr(sys.modules["__main__"], "__file__", None)
_is_ours = sys.argv[:1] == ["-m"] or (_script and Path(_script).resolve().parent == ROOT)
if _is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _on_interrupt)
