"""Signals are deferred until a step ends, and the garbage collector is as it was after large imports."""

import gc
import signal
import time
from contextlib import suppress

import pytest

from bora_sweep import process
from bora_sweep.process import Interrupted, defer_signals, gc_paused


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_is_looked_for_after_large_imports_if_it_was_before(was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        with suppress(ImportError), gc_paused():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("number", process.SIGNALS)
def test_a_first_signal_is_deferred_and_an_echo_of_it_ignored(number):
    before, calls = signal.getsignal(number), []
    with defer_signals(lambda: calls.append(number)) as check_stop:
        check_stop()
        signal.raise_signal(number)
        signal.raise_signal(number)
        with pytest.raises(Interrupted):
            check_stop()
    assert calls == [number]
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(process, "ECHO_SECONDS", 0.0)
    with defer_signals():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
