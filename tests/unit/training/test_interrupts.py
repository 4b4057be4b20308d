import signal
import threading

import pytest

from app.training.interrupts import interrupts_held


def test_an_interrupt_within_the_block_comes_at_its_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():  # noqa: PT012 - what is after it counts
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]


def test_an_interrupt_before_or_after_the_block_comes_at_once():
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        pass
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_without_an_interrupt_nothing_is_raised():
    with interrupts_held():
        value = 1
    assert value == 1


def test_an_error_within_the_block_goes_through_and_the_handler_is_put_back():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interrupts_held():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_the_block_just_runs():
    done = []

    def work() -> None:
        with interrupts_held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
