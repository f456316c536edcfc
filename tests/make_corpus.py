"""Makes small corpora of tones and noise with the real ones' layouts.

Run it to have one to look at or to train on:
``python tests/make_corpus.py LibriSpeech /tmp/corpus dev-clean``.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

__all__ = ["make_corpus"]

SAMPLE_RATES = {
    "LibriSpeech": 16000,
    "LibriTTS": 24000,
    "LibriLight": 16000,
    "AN4": 16000,
    "Folder": 22050,
}
# Where the splits are.
BELOW = {"AN4": "wav"}


def make_corpus(
    name: str,
    folder: str | Path,
    splits: Sequence[str],
    num_speakers: int = 3,
    num_utterances: int = 2,
    duration: float = 1.5,
    transcripts: bool = True,
) -> Path:
    """Write a corpus; no two of its utterances are equally long.

    Arguments
    ---------
    name : str
        "LibriSpeech", "LibriTTS", "LibriLight", "AN4" or "Folder" (folders
        of speakers with WAV, FLAC and Ogg files, some deeper than others).
    folder : str or Path
        The folder that the splits go into.
    splits : sequence of str
        Names of the splits; speakers are not shared between them.
    num_speakers : int
        Number of speakers of a split; each has one chapter.
    num_utterances : int
        Number of utterances of a speaker.
    duration : float
        Length of the shortest utterance, in seconds.
    transcripts : bool
        Whether to write transcripts, where the corpus has them, or what
        Libri-Light has beside its files.

    Returns
    -------
    Path
        `folder`.

    Example
    -------
    >>> folder = make_corpus("LibriTTS", getfixture("tmp_path"), ["dev"], 1, 1)
    >>> [path.name for path in folder.glob("dev/*/*/*.wav")]
    ['100_7_000000_000000.wav']
    """
    sample_rate = SAMPLE_RATES[name]
    folder = Path(folder)
    generator = np.random.default_rng(0)
    count = 0
    for i, split in enumerate(splits):
        for speaker in range(100 * (i + 1), 100 * (i + 1) + num_speakers):
            for utterance in range(num_utterances):
                num_samples = int(duration * sample_rate) + 40 * count
                count += 1
                time = np.arange(num_samples) / sample_rate
                sig = 0.3 * np.sin(2 * np.pi * (speaker + 20) * time)
                sig += 0.05 * generator.standard_normal(num_samples)
                path = folder / BELOW.get(name, "") / split
                path /= PATHS[name](speaker, utterance)
                path.parent.mkdir(parents=True, exist_ok=True)
                subtype = "VORBIS" if path.suffix == ".ogg" else "PCM_16"
                soundfile.write(path, sig, sample_rate, subtype=subtype)
                if transcripts and name in SIDECARS:
                    SIDECARS[name](path, count)
    return folder


def _folder_path(speaker: int, utterance: int) -> str:
    suffix = (".wav", ".FLAC", ".ogg")[(speaker + utterance) % 3]
    return f"{speaker}/{'more/' * (utterance % 2)}take {utterance}{suffix}"


PATHS: dict[str, Callable[[int, int], str]] = {
    "LibriSpeech": "{0}/7/{0}-7-{1:04d}.flac".format,
    "LibriTTS": "{0}/7/{0}_7_{1:06d}_000000.wav".format,
    # Books of different speakers have files of the same name.
    "LibriLight": "{0}/book_{0}_64kb_mp3/{1:02d}_chapter_64kb.flac".format,
    "AN4": "{0}/an{1}-{0}-b.wav".format,
    "Folder": _folder_path,
}


def _add_transcript(path: Path, count: int) -> None:
    lines = path.with_name(path.stem.rpartition("-")[0] + ".trans.txt")
    with open(lines, "a", encoding="utf-8") as stream:
        stream.write(f"{path.stem} UTTERANCE {count}\n")


def _write_transcript(path: Path, count: int) -> None:
    path.with_suffix(".normalized.txt").write_text(
        f"Utterance {count}.", encoding="utf-8"
    )


def _add_to_transcription(path: Path, count: int) -> None:
    wav, split = path.parents[2:0:-1]
    etc = wav.with_name("etc")
    etc.mkdir(exist_ok=True)
    with open(etc / f"{split.name}.transcription", "a") as stream:
        stream.write(f"<s> UTTERANCE {count} </s> ({path.stem})\n")


def _write_sidecar(path: Path, count: int) -> None:
    speech = [[0.125, 0.5], [0.75, 1.0]]
    about = {"snr": count + 0.5, "voice_activity": speech}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")


SIDECARS: dict[str, Callable[[Path, int], None]] = {
    "LibriSpeech": _add_transcript,
    "LibriTTS": _write_transcript,
    "LibriLight": _write_sidecar,
    "AN4": _add_to_transcription,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SAMPLE_RATES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("splits", nargs="+")
    arguments = parser.parse_args()
    make_corpus(arguments.name, arguments.folder, arguments.splits)
