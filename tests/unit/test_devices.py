"""What choosing a device does to the process, found out in processes of their own."""

import os
import subprocess
import sys

import pytest

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def printed(program: str) -> list[int]:
    """The numbers that a program prints, run with two threads."""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [int(word) for word in run.stdout.split()]


@LINUX
def test_on_the_cpu_the_memory_of_large_tensors_is_used_again():
    program = """
import resource, torch
from app.devices import choose_device
{choose}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
counts = [faults() for _ in range(30)]
print(sum(counts[10:]))
"""
    [left_alone] = printed(program.format(choose=""))
    [chosen] = printed(program.format(choose='choose_device("cpu")'))
    assert left_alone > 20 * 256, "64 MiB each time, in pages of at most 256 KiB"
    assert chosen < left_alone / 4


@LINUX
def test_a_thread_that_computes_alone_starts_no_helpers():
    program = """
import os, torch
from app.devices import one_thread
def work():
    torch.ones(1 << 22).sum()
    return len(os.listdir("/proc/self/task"))
with one_thread():
    print(work())
print(torch.get_num_threads(), work())
"""
    alone, threads, at_last = printed(program)
    assert (threads, at_last) == (2, alone + 1)
