"""Randomness as a pure function of (seed, purpose, step): what makes resuming exact."""

import hashlib

import torch


def derive(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed that depends on every argument, the same on every machine."""
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive`; draws are then moved to the device."""
    return torch.Generator().manual_seed(derive(seed, *labels))
