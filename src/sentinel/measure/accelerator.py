"""What PyTorch tells of a device that is not the CPU: when its work is done, and how much memory it took at the most."""

from __future__ import annotations

import torch


def device_label(device: str) -> str:
    """The device by its name, with the card's where PyTorch tells it: ``cuda (NVIDIA H200)``."""
    if not device.startswith("cuda"):
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"


def synchronise(device: torch.device) -> None:
    """Wait for what is queued on an accelerator, so that the host's clock is right; on the CPU nothing is queued."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def reset_device_peak(device: torch.device) -> None:
    """Start the device's peak counter anew, where there is one."""
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()


def device_peak_mb(device: torch.device) -> float | None:
    """Most memory of the device that tensors of this process took since the reset, in MB (10^6 bytes); None where PyTorch
    does not count it."""
    module = torch.get_device_module(device)
    return module.max_memory_allocated() / 1e6 if hasattr(module, "max_memory_allocated") else None
