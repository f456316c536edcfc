"""Codecs that are command-line tools, fed through pipes."""

import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_focalcodec.errors import FocalCodecError

__all__ = ["find_tool", "from_pcm", "run_tool", "to_pcm"]

# A tool that takes longer hangs: these are faster than real time by far.
TIMEOUT = 600.0


def find_tool(name: str, package: str) -> str:
    """Find a command-line tool.

    Arguments
    ---------
    name : str
        What it is called.
    package : str
        Debian's package that has it.

    Returns
    -------
    str
        Its path.

    Raises
    ------
    FocalCodecError
        If it is not installed; the message says how to get it.

    Example
    -------
    >>> find_tool("nosuchtool", "nosuchpackage")
    Traceback (most recent call last):
        ...
    speechbrain_focalcodec.errors.FocalCodecError: This needs nosuchtool, ...
    """
    path = shutil.which(name)
    if path is None:
        raise FocalCodecError(
            f"This needs {name}, which is not installed or not on PATH. "
            f"Install it with: apt-get install {package} (Debian, Ubuntu), or "
            f"the like elsewhere"
        )
    return path


def run_tool(command: Sequence[str], stdin: bytes = b"") -> bytes:
    """Run a tool to its end.

    Arguments
    ---------
    command : sequence of str
        The tool and its arguments; no shell is involved.
    stdin : bytes
        What it reads.

    Returns
    -------
    bytes
        What it writes to its standard output.

    Raises
    ------
    FocalCodecError
        If it fails or takes longer than `TIMEOUT` seconds; the message has
        the last line that it wrote about it.

    Example
    -------
    >>> run_tool(["cat"], b"as it was")
    b'as it was'
    """
    text = " ".join(command)
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FocalCodecError(f"{text}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise FocalCodecError(
            f"{text}: failed with status {done.returncode}: "
            + (said[-1] if said else "it said nothing")
        )
    return done.stdout


def to_pcm(sig: torch.Tensor) -> bytes:
    """Waveform to 16-bit samples.

    Arguments
    ---------
    sig : torch.Tensor
        Waveform [T]; what is beyond [-1, 1] is clipped.

    Returns
    -------
    bytes
        Little-endian integers of 16 bits, without a header.

    Example
    -------
    >>> to_pcm(torch.tensor([0.0, 0.5, 2.0])).hex(" ", 2)
    '0000 0040 ff7f'
    """
    scaled = (sig.detach().cpu().float() * 2**15).round()
    return scaled.clamp(-(2**15), 2**15 - 1).numpy().astype("<i2").tobytes()


def from_pcm(data: bytes) -> torch.Tensor:
    """16-bit samples to a waveform.

    Arguments
    ---------
    data : bytes
        Little-endian integers of 16 bits, without a header.

    Returns
    -------
    torch.Tensor
        Waveform [T], float32.

    Example
    -------
    >>> from_pcm(to_pcm(torch.tensor([0.0, 0.5, -1.0])))
    tensor([ 0.0000,  0.5000, -1.0000])
    """
    return torch.from_numpy(np.frombuffer(data, "<i2").astype("f4") / 2**15)
