"""Stopping on request: signals, time limits, exact resume, checkpoints that survive a death in the middle of a save."""

from __future__ import annotations

import os
import signal

import pytest

from jepa.stopping import STOP_SIGNALS, Stopped, StopSignal


def test_stop_signal_notes_the_first_and_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignal() as stop:
        assert (stop.signum, stop.reason) == (None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.signum, stop.reason) == (signal.SIGTERM, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_inner_stop_signal_takes_over_and_hands_back(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as early:
        os.kill(os.getpid(), signal.SIGUSR1)
        with StopSignal() as inner:
            assert inner.reason == "SIGUSR1"
    assert capfd.readouterr().err.count("jepa: SIGUSR1: stopping") == 1
    with StopSignal() as outer:
        with StopSignal() as inner:
            os.kill(os.getpid(), signal.SIGUSR2)
        assert outer.reason == "SIGUSR2"
    assert early.reason == "SIGUSR1"


def test_at_once_raises_where_the_program_is() -> None:
    with StopSignal(at_once=(signal.SIGUSR1,)) as stop, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.reason == stopped.value.reason == "SIGUSR1"
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert Stopped("time limit").code == 128 + signal.SIGUSR1
