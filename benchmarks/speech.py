"""Real speech for the benchmarks, and how tokens differ on it."""

from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from speechbrain_focalcodec.audio import find_audio_files, read_audio
from speechbrain_focalcodec.errors import DataError


def spread(items: list, number: int) -> list:
    """Choose some of a list, evenly.

    Arguments
    ---------
    items : list
        To choose from.
    number : int
        How many.

    Returns
    -------
    list
        All of them when there are not so many.

    Example
    -------
    >>> spread([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def read_clips(
    data: Path, number: int, sample_rate: int
) -> dict[str, torch.Tensor]:
    """Read some files of a folder, chosen evenly.

    Arguments
    ---------
    data : Path
        The folder, of any tree.
    number : int
        Files wanted.
    sample_rate : int
        To resample to (Hz).

    Returns
    -------
    dict
        Waveforms [T] by the files' paths within the folder.

    Raises
    ------
    DataError
        If there is no audio.
    """
    paths = find_audio_files(data)
    if not paths:
        raise DataError(f"{data}: has no audio files; check the path")
    return {
        str(path.relative_to(data)): read_audio(path, sample_rate)[0]
        for path in spread(paths, number)
    }


def join_utterances(
    data: Path,
    number: int,
    seconds: float,
    sample_rate: int,
    num_speakers: int = 1,
) -> dict[str, torch.Tensor]:
    """Make long recordings: the utterances of a speaker, one after another.

    Arguments
    ---------
    data : Path
        LibriSpeech, or any tree whose files' names begin with the speaker
        and a hyphen.
    number : int
        Recordings wanted, each of other speakers.
    seconds : float
        Length of each.
    sample_rate : int
        To resample to (Hz).
    num_speakers : int
        Speakers of each recording, who speak in turn and equally long.

    Returns
    -------
    dict
        Waveforms [T] by speaker, such as ``"84"`` or ``"84+174"``.

    Raises
    ------
    DataError
        If not so many speakers speak so long.
    """
    files: dict[str, list[Path]] = {}
    for path in find_audio_files(data):
        files.setdefault(path.stem.split("-")[0], []).append(path)
    share = seconds / num_speakers
    speakers = [
        speaker
        for speaker, paths in files.items()
        if sum(soundfile.info(path).duration for path in paths) >= share
    ]
    if len(speakers) < number * num_speakers:
        raise DataError(
            f"{data}: {len(speakers)} speakers speak for {share:g} s, "
            f"{number * num_speakers} are needed; ask for less, join more "
            "speakers, or give another folder"
        )
    speakers = spread(speakers, number * num_speakers)
    recordings = {}
    for i in range(0, len(speakers), num_speakers):
        group = speakers[i : i + num_speakers]
        recordings["+".join(group)] = torch.cat(
            [_read_first(files[x], share, sample_rate) for x in group]
        )
    return recordings


def _read_first(
    paths: list[Path], seconds: float, sample_rate: int
) -> torch.Tensor:
    """The beginning of some files, one after another."""
    length = round(seconds * sample_rate)
    parts: list[torch.Tensor] = []
    for path in paths:
        if sum(map(len, parts)) >= length:
            break
        parts.append(read_audio(path, sample_rate)[0])
    return torch.cat(parts)[:length]


@dataclass
class Difference:
    """How many tokens, and how many of their bits, differ.

    Arguments
    ---------
    num_tokens, num_bits : int
        All there are.
    tokens, bits : int
        Those that differ.
    """

    num_tokens: int = 0
    num_bits: int = 0
    tokens: int = 0
    bits: int = 0

    @property
    def token_share(self) -> float:
        """Share of the tokens that differ."""
        return self.tokens / self.num_tokens

    @property
    def bit_share(self) -> float:
        """Share of the bits that differ."""
        return self.bits / self.num_bits

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.num_tokens + other.num_tokens,
            self.num_bits + other.num_bits,
            self.tokens + other.tokens,
            self.bits + other.bits,
        )


def compare_tokens(
    toks: torch.Tensor, others: torch.Tensor, dim: int
) -> Difference:
    """Count what differs.

    Arguments
    ---------
    toks, others : torch.Tensor
        Tokens, int64, of the same shape.
    dim : int
        Bits of a token.

    Returns
    -------
    Difference
        The counts.

    Raises
    ------
    ValueError
        If the shapes differ: then something is wrong.

    Example
    -------
    >>> compare_tokens(torch.tensor([0, 5]), torch.tensor([0, 6]), 13)
    Difference(num_tokens=2, num_bits=26, tokens=1, bits=2)
    """
    if toks.shape != others.shape:
        raise ValueError(
            f"toks and others must have one shape, got {list(toks.shape)} "
            f"and {list(others.shape)}"
        )
    changed = toks.cpu() ^ others.cpu()
    return Difference(
        num_tokens=changed.numel(),
        num_bits=changed.numel() * dim,
        tokens=int((changed != 0).sum()),
        bits=sum(int((changed >> k & 1).sum()) for k in range(dim)),
    )
