"""Real speech for the benchmarks, and tokens that differ on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from speechbrain_focalcodec.audio import find_audio_files, read_audio
from speechbrain_focalcodec.errors import DataError


def choose_evenly(items: list, number: int) -> list:
    """Choose at most `number` items, evenly spaced.

    Example
    -------
    >>> choose_evenly([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def find_clips(data: Path, number: int | None) -> list[Path]:
    """Choose audio files of a folder, evenly spaced; all without a number."""
    paths = find_audio_files(data)
    if not paths:
        raise DataError(f"{data}: has no audio files; check the path")
    return choose_evenly(paths, number or len(paths))


def join_utterances(
    data: Path, number: int, seconds: float, sample_rate: int
) -> dict[str, torch.Tensor]:
    """Make recordings of some seconds by joining utterances of a speaker.

    `data` is LibriSpeech, or a folder of files whose names begin with the
    speaker and a hyphen. Gives waveforms [T] by speaker.
    """
    files: dict[str, list[Path]] = {}
    for path in find_audio_files(data):
        files.setdefault(path.stem.split("-")[0], []).append(path)
    speakers = [
        speaker
        for speaker, paths in files.items()
        if sum(soundfile.info(path).duration for path in paths) >= seconds
    ]
    if len(speakers) < number:
        raise DataError(
            f"{data}: {len(speakers)} speakers have {seconds:g} s of speech, "
            f"{number} are needed; ask for less, or give another folder"
        )
    length = round(seconds * sample_rate)
    recordings = {}
    for speaker in choose_evenly(speakers, number):
        parts: list[torch.Tensor] = []
        for path in files[speaker]:
            if sum(map(len, parts)) < length:
                parts.append(read_audio(path, sample_rate)[0])
        recordings[speaker] = torch.cat(parts)[:length]
    return recordings


@dataclass
class Difference:
    """Tokens and bits that differ between two encodings.

    Arguments
    ---------
    num_tokens : int
        All tokens.
    token_share, bit_share : float
        Share of the tokens, and of their bits, that differ.
    worst : float
        Share of the tokens that differ in the worst recording.
    """

    num_tokens: int
    token_share: float
    bit_share: float
    worst: float


def compare_tokens(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], dim: int
) -> Difference:
    """Count differences over recordings, given pairs of int64 tokens.

    Example
    -------
    >>> compare_tokens([(torch.tensor([0, 5]), torch.tensor([0, 6]))], 10)
    Difference(num_tokens=2, token_share=0.5, bit_share=0.1, worst=0.5)
    """
    total = tokens = bits = 0
    worst = 0.0
    for toks, others in pairs:
        if toks.shape != others.shape:
            raise ValueError(
                f"the tokens of a pair must have one shape, got "
                f"{list(toks.shape)} and {list(others.shape)}"
            )
        changed = toks.cpu() ^ others.cpu()
        differing = int((changed != 0).sum())
        total += changed.numel()
        tokens += differing
        bits += sum(int((changed >> k & 1).sum()) for k in range(dim))
        worst = max(worst, differing / changed.numel())
    return Difference(total, tokens / total, bits / (total * dim), worst)
