"""A process that is killed with -9 at every single step of something, one step further each time.

A step is a line that Python runs in the files named. Each try is a fork, so that importing is paid
once; run it in a process of its own, which has no other thread and nothing open.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any


def at_every_step(
    action: Callable[[int], None],
    check: Callable[[int], None],
    files: Collection[str],
    *,
    stride: int = 1,
) -> int:
    """Run `action(n)`, killed at its n-th step, and then `check(n)`; until an action gets through.

    `files` are names without their folder. Returns how many steps the whole action has.
    """
    step = 1
    while True:
        child = os.fork()
        if child == 0:
            _killed_at(step, files)
            try:
                action(step)
            except BaseException as error:  # a fork must not come back into the test
                sys.settrace(None)
                print(f"step {step}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the action failed by itself at step {step}")
        check(step)
        if status == 0:
            return step - 1
        step += stride


def _killed_at(step: int, files: Collection[str]) -> None:
    left = step

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return lines if Path(frame.f_code.co_filename).name in files else None

    def lines(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return lines

    sys.settrace(trace)
