"""Ending commands by signals, within this process."""

import signal

import pytest
import typer

from speechbrain_focalcodec.cli.stopping import stopping
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.jobs.report import ProgressBar

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


@pytest.fixture
def received():
    """Signals that reach who had the handlers before; those stay."""
    found = []

    def note(number, frame):
        found.append(number)

    before = {number: signal.signal(number, note) for number in ALL}
    yield found
    kept = [signal.getsignal(number) for number in ALL]
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert kept == [note] * 3
    assert left == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_does_no_work_ends_at_once(number, received, capsys):
    with pytest.raises(typer.Exit) as caught:
        with stopping(ProgressBar(), "stopped"):
            signal.raise_signal(number)
            raise AssertionError
    assert caught.value.exit_code == 128 + number
    assert capsys.readouterr().err == "stopped\n"
    assert not received


def test_what_a_library_makes_of_a_signal_is_no_error(received, capsys):
    with pytest.raises(typer.Exit) as caught:
        with stopping(ProgressBar(), "stopped"):
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException as error:
                raise ImportError("half a module") from error
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("is_asked", [False, True])
def test_errors_of_ours_are_told(is_asked, received, capsys):
    bar = ProgressBar()
    with pytest.raises(DataError, match="disk is full"):
        with stopping(bar, "stopped"):
            bar.is_at_work = is_asked
            if is_asked:
                signal.raise_signal(signal.SIGTERM)
            raise DataError("disk is full")
    assert capsys.readouterr().err == ""


def test_errors_without_a_signal_are_told(received):
    with pytest.raises(ZeroDivisionError):
        with stopping(ProgressBar(), "stopped"):
            raise ZeroDivisionError


def test_a_batch_has_some_time(received):
    bar, done = ProgressBar(), []
    with pytest.raises(typer.Exit) as caught:
        with stopping(bar, None):
            bar.is_at_work = True
            signal.raise_signal(signal.SIGTERM)
            done.append(0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 10)
            bar.check()
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert done == [True] and not received


def test_a_batch_that_takes_too_long_is_cut_off(received):
    bar = ProgressBar()
    with pytest.raises(typer.Exit) as caught:
        with stopping(bar, None):
            bar.is_at_work = True
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGALRM)
            raise AssertionError
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert not received


@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_signal_at_the_very_end_is_for_who_comes_next(
    is_at_work, received, monkeypatch
):
    """An alarm that it left behind would kill the process."""
    bar, setitimer = ProgressBar(), signal.setitimer

    def signals_then_set(*arguments):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGTERM)
        return setitimer(*arguments)

    with stopping(bar, None):
        bar.is_at_work = is_at_work
        monkeypatch.setattr(signal, "setitimer", signals_then_set)
    assert received == [signal.SIGTERM]


def test_what_is_ignored_stays_so(received):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping(ProgressBar(), None):
        signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
