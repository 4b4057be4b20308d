"""Which device to compute on."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.errors import DeviceError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGE = 1 << 30


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU, or the CPU where there is none.

    TF32 convolutions are turned off: what is measured offline must be what is served, and answers
    must agree to 1e-5 whatever the batch. On the CPU memory that is freed stays with the process.

    Raises:
        DeviceError: no device has that name, or torch cannot see it.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"There is no device {name!r}: use auto, cpu, cuda or cuda:<n>."
        ) from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= count
    ):
        raise DeviceError(
            f"Device {name!r} is not there, torch sees {count} GPUs: use cpu or auto."
        )
    if device.type == "cpu":
        _keep_freed_memory()
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Has this thread compute alone, for what is not the device's work.

    The helpers that OpenMP starts for a thread stay. Once all of them are more than the cores,
    none waits actively any more, and every operation of a lane takes up to twice as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Has glibc reuse the memory of large tensors instead of giving it back to the system.

    It comes back as pages that must be cleared one by one, which is up to a third of the time of a
    forward pass. Other C libraries have no such setting, and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
