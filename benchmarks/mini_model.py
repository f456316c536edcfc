"""Measures resynthesised speech: STOI, word error rates and speed.

Example, from the repository's root:

    python benchmarks/mini_model.py --data DIR --whisper tiny.en.pt

``DIR`` is a folder of speech (any tree; LibriSpeech's ``*.trans.txt`` files
are used where they are). Each utterance is encoded and decoded alone. STOI is
against the original at the model's output rate. dWER takes Whisper's
transcript of the original as the truth and so counts what the codec adds; WER
takes the true transcripts. Means over the corpus come with a 95 % interval by
bootstrap over utterances (seeded).
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import soundfile
import torch
import typer
from tqdm import tqdm

from speechbrain_focalcodec.atomic import atomic_write_text
from speechbrain_focalcodec.audio import (
    find_audio_files,
    read_audio,
    resample,
)
from speechbrain_focalcodec.checkpoint import DEFAULT_MODEL
from speechbrain_focalcodec.codec import FocalCodec, fit_length
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.metrics.bootstrap import Estimate, bootstrap_ratio
from speechbrain_focalcodec.metrics.stoi import stoi
from speechbrain_focalcodec.metrics.wer import (
    WhisperTranscriber,
    WordErrors,
    count_word_errors,
)


@dataclass
class Utterance:
    """What was measured of one utterance.

    Arguments
    ---------
    name : str
        Its path within the data folder.
    duration : float
        In seconds.
    seconds : float
        Time that encoding and decoding took together.
    stoi : float
        STOI of the reconstruction.
    transcript : str, optional
        The true text.
    original : str, optional
        Whisper's transcript of the original.
    reconstruction : str, optional
        Whisper's transcript of the reconstruction.
    """

    name: str
    duration: float
    seconds: float
    stoi: float
    transcript: str | None = None
    original: str | None = None
    reconstruction: str | None = None


def read_transcripts(folder: Path) -> dict[str, str]:
    """Read LibriSpeech's transcripts.

    Arguments
    ---------
    folder : Path
        Searched for ``*.trans.txt`` files.

    Returns
    -------
    dict
        Text by utterance, such as ``"84-121123-0000"``.
    """
    transcripts = {}
    for path in sorted(folder.rglob("*.trans.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            transcripts[name] = text
    return transcripts


@torch.inference_mode()
def resynthesize(
    codec: FocalCodec, sig: torch.Tensor, feats_only: bool
) -> tuple[torch.Tensor, float]:
    """Take one utterance through the codec.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    sig : torch.Tensor
        Waveform at the model's input rate, shape [T].
    feats_only : bool
        Whether to decode the encoder's features, without quantizing them.

    Returns
    -------
    rec_sig : torch.Tensor
        Waveform at the model's output rate, as long as `sig`, on the CPU.
    seconds : float
        The time it took.
    """
    batch = sig[None].to(next(codec.parameters()).device)
    start = time.perf_counter()
    if feats_only:
        rec_sig = fit_length(
            codec.feats_to_sig(codec.sig_to_feats(batch)),
            codec.output_num_samples(len(sig)),
        )
    else:
        rec_sig = codec.resynthesize(batch)
    rec_sig = rec_sig[0].cpu()
    return rec_sig, time.perf_counter() - start


def measure(
    codec: FocalCodec,
    path: Path,
    transcriber: WhisperTranscriber | None,
    feats_only: bool,
) -> Utterance:
    """Resynthesise one file and measure it.

    Arguments
    ---------
    codec : FocalCodec
        The model.
    path : Path
        The audio file.
    transcriber : WhisperTranscriber, optional
        For the transcripts; without it only STOI is measured.
    feats_only : bool
        See :func:`resynthesize`.

    Returns
    -------
    Utterance
        Its measures; name and transcript are the caller's.
    """
    rate_in, rate_out = codec.sample_rate_input, codec.sample_rate_output
    sig, _ = read_audio(path, rate_in)
    rec_sig, seconds = resynthesize(codec, sig, feats_only)
    utterance = Utterance(
        name=path.name,
        duration=len(sig) / rate_in,
        seconds=seconds,
        stoi=stoi(resample(sig, rate_in, rate_out), rec_sig, rate_out),
    )
    if transcriber is not None:
        utterance.original = transcriber(sig, rate_in)
        utterance.reconstruction = transcriber(rec_sig, rate_out)
    return utterance


def summarize(utterances: list[Utterance]) -> dict[str, Estimate]:
    """Average over the corpus.

    Arguments
    ---------
    utterances : list of Utterance
        At least one.

    Returns
    -------
    dict
        Mean STOI, the real-time factor, and the error rates that could be
        measured: all edits over all reference words.
    """
    summary = {
        "STOI": bootstrap_ratio([item.stoi for item in utterances]),
        "real-time factor": bootstrap_ratio(
            [item.seconds for item in utterances],
            [item.duration for item in utterances],
        ),
    }
    rates = {
        "dWER": ("original", "reconstruction"),
        "WER, original": ("transcript", "original"),
        "WER, reconstruction": ("transcript", "reconstruction"),
    }
    for name, (reference, hypothesis) in rates.items():
        errors = [
            count_word_errors(
                getattr(item, reference), getattr(item, hypothesis)
            )
            for item in utterances
            if None not in (getattr(item, reference), getattr(item, hypothesis))
        ]
        if any(error.words for error in errors):
            summary[name] = _rate(errors)
    return summary


def _rate(errors: list[WordErrors]) -> Estimate:
    return bootstrap_ratio(
        [error.edits for error in errors], [error.words for error in errors]
    )


def to_markdown(summary: dict[str, Estimate]) -> str:
    """Write a summary as a table.

    Arguments
    ---------
    summary : dict
        From :func:`summarize`.

    Returns
    -------
    str
        A Markdown table; error rates in per cent.
    """
    lines = ["| measure | value | 95 % interval |", "|---|---|---|"]
    for name, estimate in summary.items():
        numbers = [estimate.value, estimate.low, estimate.high]
        if "WER" in name:
            value, low, high = (f"{100 * number:.1f}" for number in numbers)
            lines.append(f"| {name} | {value} % | {low}–{high} % |")
        else:
            value, low, high = (f"{number:.3f}" for number in numbers)
            lines.append(f"| {name} | {value} | {low}–{high} |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder of speech.")],
    model: Annotated[
        str, typer.Option(help="Bundled name, folder or hub repository.")
    ] = DEFAULT_MODEL,
    whisper: Annotated[
        Path | None,
        typer.Option(help="Local Whisper checkpoint; without it no WER."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N files.")
    ] = None,
    min_seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Only longer files: STOI needs about half a second of speech.",
        ),
    ] = 0.0,
    feats_only: Annotated[
        bool,
        typer.Option(
            "--feats-only",
            help="Decode the encoder's features without quantizing them: "
            "what the decoder could reach with a perfect quantizer.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file for the summary and each utterance."),
    ] = None,
) -> None:
    """Resynthesise a folder of speech and measure it."""
    codec = FocalCodec.from_pretrained(model, device=device)
    transcriber = whisper and WhisperTranscriber(whisper, device)
    transcripts = read_transcripts(data)
    paths = [
        path
        for path in find_audio_files(data)
        if not min_seconds or soundfile.info(path).duration >= min_seconds
    ][:limit]
    if not paths:
        raise DataError(
            f"{data}: has no audio files of {min_seconds:g} s and more; check "
            "the path"
        )

    # The first call is slow.
    resynthesize(codec, torch.zeros(codec.sample_rate_input), feats_only)
    utterances = []
    for path in tqdm(paths, unit="file", disable=None):
        utterance = measure(codec, path, transcriber, feats_only)
        utterance.name = str(path.relative_to(data))
        utterance.transcript = transcripts.get(path.stem)
        utterances.append(utterance)

    summary = summarize(utterances)
    what = "features alone" if feats_only else f"{codec.bitrate:g} bit/s"
    minutes = sum(item.duration for item in utterances) / 60
    typer.echo(
        f"{codec.name} ({what}), {len(utterances)} utterances of {data}, "
        f"{minutes:.1f} min, {torch.get_num_threads()} threads on {device}"
        + (f", Whisper {whisper.stem}" if whisper else "")
        + f"\n\n{to_markdown(summary)}"
    )
    if out is not None:
        result = {
            "model": codec.name,
            "fingerprint": codec.fingerprint,
            "feats_only": feats_only,
            "whisper": whisper and whisper.stem,
            "summary": {key: asdict(value) for key, value in summary.items()},
            "utterances": [asdict(item) for item in utterances],
        }
        atomic_write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
