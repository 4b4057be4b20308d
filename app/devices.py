"""Which device to compute on."""

import torch

from app.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU, or the CPU where there is none.

    TF32 convolutions are turned off: what is measured offline must be what is served, and answers
    must agree to 1e-5 whatever the batch.

    Raises:
        DeviceError: no device has that name, or torch cannot see it.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
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
    return device
