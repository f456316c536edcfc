"""Audio files for tests of `focalcodec tokenize`, and reading its output."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from speechbrain_focalcodec.jobs.audio import AudioJob

__all__ = ["bad_files", "clip", "files_of", "read_or_die", "rows_of"]


def clip(
    path: Path, seconds: float, rate: int = 16000, channels: int = 1
) -> Path:
    """Write a tone with noise that depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(path.name.encode()))
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * generator.uniform(80, 400) * time)
    noise = generator.standard_normal((len(time), channels))
    soundfile.write(path, 0.3 * tone[:, None] + 0.05 * noise, rate)
    return path


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that cannot be tokenised; words of the reasons, by id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no audio file at all.\n" * 9)
    # Its header tells that it is cut, and of this one only decoding.
    cut = clip(folder / "cut.wav", 1.0)
    cut.write_bytes(cut.read_bytes()[:9000])
    flac = clip(folder / "cut2.flac", 2.0)
    flac.write_bytes(flac.read_bytes()[:9000])
    sig = np.zeros(16000)
    sig[500] = np.nan
    soundfile.write(folder / "nan.wav", sig, 16000, subtype="FLOAT")
    return {
        "empty": "is empty",
        "text": "cannot be decoded",
        "cut": "",
        "cut2": "",
        "nan": "finite",
    }


def rows_of(out: Path) -> pa.Table:
    """All rows of a token dataset, in the shards' order."""
    shards = sorted((out / "data").glob("tokens-*.parquet"))
    return pa.concat_tables(pq.read_table(shard) for shard in shards)


def files_of(out: Path, of: Iterable[str] = ("data", ".")) -> dict[str, bytes]:
    """The files of a dataset's folders, hidden ones too."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for name in of
        for path in (out / name).iterdir()
        if path.is_file()
    }


def read_or_die(job: AudioJob) -> str:
    """Read, die or raise, by the file's name."""
    if job.path == "die":
        os._exit(9)
    if job.path == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if job.path == "raise":
        raise MemoryError("too much")
    return job.path.upper()
