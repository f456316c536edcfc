"""Makes small corpora of tones and noise with the real ones' layouts.

Run it to have one to look at or to train on:
``python tests/make_corpus.py LibriSpeech /tmp/corpus dev-clean``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

__all__ = ["make_corpus"]

SAMPLE_RATES = {"LibriSpeech": 16000, "LibriTTS": 24000}


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
        "LibriSpeech" or "LibriTTS".
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
        Whether to write transcripts.

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
            chapter = folder / split / str(speaker) / "7"
            chapter.mkdir(parents=True)
            lines = []
            for utterance in range(num_utterances):
                num_samples = int(duration * sample_rate) + 40 * count
                count += 1
                time = np.arange(num_samples) / sample_rate
                sig = 0.3 * np.sin(2 * np.pi * (speaker + 20) * time)
                sig += 0.05 * generator.standard_normal(num_samples)
                if name == "LibriSpeech":
                    utt_id = f"{speaker}-7-{utterance:04d}"
                    lines.append(f"{utt_id} UTTERANCE {count}")
                    path = chapter / f"{utt_id}.flac"
                else:
                    utt_id = f"{speaker}_7_{utterance:06d}_000000"
                    path = chapter / f"{utt_id}.wav"
                    if transcripts:
                        path.with_suffix(".normalized.txt").write_text(
                            f"Utterance {count}.", encoding="utf-8"
                        )
                soundfile.write(path, sig, sample_rate, subtype="PCM_16")
            if lines and transcripts:
                (chapter / f"{speaker}-7.trans.txt").write_text(
                    "\n".join(lines) + "\n", encoding="utf-8"
                )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SAMPLE_RATES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("splits", nargs="+")
    arguments = parser.parse_args()
    make_corpus(arguments.name, arguments.folder, arguments.splits)
