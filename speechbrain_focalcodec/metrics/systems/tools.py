"""Runs codecs that are command-line tools, through pipes."""

import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_focalcodec.errors import FocalCodecError

__all__ = ["find_tool", "from_pcm", "run_tool", "to_pcm"]

# Seconds after which a tool hangs; these are much faster than real time.
TIMEOUT = 600.0


def find_tool(name: str, package: str) -> str:
    """Path of a tool from a Debian package.

    Raises a FocalCodecError if it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise FocalCodecError(
            f"This needs {name}, which is not installed or not on PATH. "
            f"Install it with: apt-get install {package} (Debian, Ubuntu), or "
            "the like elsewhere"
        )
    return path


def run_tool(command: Sequence[str], stdin: bytes = b"") -> bytes:
    """Run a tool on `stdin` and return its standard output.

    Raises a FocalCodecError, with the last line of its standard error, if it
    fails or takes longer than `TIMEOUT` seconds.
    """
    text = " ".join(command)
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FocalCodecError(f"{text}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise FocalCodecError(
            f"{text}: failed with status {done.returncode}: "
            + (lines[-1] if lines else "no error output")
        )
    return done.stdout


def to_pcm(sig: torch.Tensor) -> bytes:
    """Waveform [T] to 16-bit little-endian samples; clips to [-1, 1]."""
    scaled = (sig.detach().cpu().float() * 2**15).round()
    return scaled.clamp(-(2**15), 2**15 - 1).numpy().astype("<i2").tobytes()


def from_pcm(data: bytes) -> torch.Tensor:
    """16-bit little-endian samples to a waveform [T], float32."""
    return torch.from_numpy(np.frombuffer(data, "<i2").astype("f4") / 2**15)
