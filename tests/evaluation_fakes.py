"""Codecs, a metric and corpora for tests of `focalcodec evaluate`."""

import csv

import torch
from corpora import clip

from speechbrain_focalcodec.metrics import finishing
from speechbrain_focalcodec.metrics.base import Column, Metric
from speechbrain_focalcodec.metrics.systems.base import Output, System


class Gain(System):
    """Scales the signal; 100 bit/s."""

    sample_rate_input = 16000
    sample_rate_output = 8000
    codebook_size = 4

    def __init__(self, name="gain", gain=0.5, fingerprint="1"):
        self.name, self.gain, self.fingerprint = name, gain, fingerprint
        self.batches = []

    def encode(self, sig):
        raise AssertionError("works on batches")

    decode = bits = encode

    def resynthesize(self, sigs):
        self.batches.append([len(sig) for sig in sigs])
        return [
            Output(
                self.gain * sig[::2], len(sig) / 160, 0.25, torch.arange(3) % 2
            )
            for sig in sigs
        ]


class Converter(Gain):
    """Outputs the level of the target."""

    def prepare_reference(self, sigs):
        return [len(sig) for sig in sigs]

    def convert(self, sig, reference):
        return Output(torch.full_like(sig[::2], 0.1), 10.0, 0.1)


class Copy(System):
    name = "original"
    sample_rate_input = sample_rate_output = 16000

    def encode(self, sig):
        return sig

    def decode(self, codes):
        return codes

    def bits(self, codes):
        return None


class Level(Metric):
    """Levels, but not of clips shorter than 0.6 s."""

    columns = (Column("level", "level ratio", "higher", "level"),)
    converts = True

    def __init__(self, name="level", fingerprint=""):
        self.name, self.fingerprint = name, fingerprint
        self.columns = (Column(name, name, "higher", name),)
        self.seen = []

    def __call__(self, samples):
        self.seen += samples
        return [
            {
                self.name: None
                if len(s.original) < 9600
                else (s.output.norm() / s.original.norm()),
                f"{self.name}_text": f"{s.text}, {len(s.output)}",
            }
            for s in samples
        ]


def rows_of(out):
    with open(out / "utterances.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def failures_of(out):
    with open(out / "failures.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def texts_of(out):
    """Texts of an evaluation's results."""
    names = ("utterances.csv", "failures.csv", "summary.json", "summary.md")
    return {name: (out / name).read_text() for name in names}


def make_data(root):
    """Clips of 0.5, 0.8 and 1 s."""
    for number, seconds in enumerate((0.5, 0.8, 1.0)):
        clip(root / f"{number}.wav", seconds)
    return root


def make_speakers(root):
    """Three speakers, two clips each."""
    for speaker in ("11", "22", "33"):
        for number in range(2):
            name = f"{speaker}-1-000{number}.wav"
            clip(root / speaker / "1" / name, 0.5 + 0.01 * int(speaker))
    return root


def without_pictures(monkeypatch):
    """Plots are slow."""
    monkeypatch.setattr(
        finishing, "plot_all", lambda folder, *_: folder.mkdir(exist_ok=True)
    )
