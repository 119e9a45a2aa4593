"""Calls on a thread that can be abandoned."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from zimage_consumers.image_worker.group.caller import Caller


def test_calls_run_in_order_on_one_other_thread_and_their_errors_are_raised() -> None:
    caller = Caller("calls")
    threads: list[int] = []
    for _ in range(3):
        caller.call(lambda: threads.append(threading.get_ident()), 5)
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        caller.call(lambda: 1 / 0, 5)
    caller.call(lambda: threads.append(0), 5)
    assert threads[-1] == 0
    caller.close()


def test_a_call_that_never_returns_times_out_and_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\n"
        "from zimage_consumers.image_worker.group.caller import Caller\n"
        "caller = Caller('calls')\n"
        "try:\n"
        "    caller.call(threading.Event().wait, 0.1)\n"
        "except TimeoutError:\n"
        "    caller.close()\n"
        "    print('given up')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "given up\n")
