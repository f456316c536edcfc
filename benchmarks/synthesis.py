"""Measures word error rates of synthesis, resynthesis and originals.

Example, from the repository's root, with the extras ``tts`` and ``whisper``,
and models that recipes/AN4 have trained:

    python benchmarks/synthesis.py results/tts_small/model AN4 \\
        --whisper tiny.en.pt --chooser results/asr_an4/tokens_1/model \\
        --recognizer results/asr_an4/log_mel_1/model --out results/tts_wer

The texts are those of AN4's test, each in the voice of its speaker, taken from
another utterance. ``--chooser``, a recogniser of tokens, adds the best of
several tries by its judgement. ``--recognizer`` transcribes everything too,
beside Whisper. The folder gets ``report.json``, all transcripts
(``transcripts.csv``) and the audio of the first utterances.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import markdown_table, show, write_json
from speechbrain.utils.edit_distance import accumulatable_wer_stats
from tqdm import tqdm

from speechbrain_focalcodec.audio import write_audio
from speechbrain_focalcodec.audio.resampling import resample
from speechbrain_focalcodec.data.an4 import prepare_an4
from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.downstream.interfaces import TokenASR
from speechbrain_focalcodec.downstream.speakers import (
    SpeakerEmbeddings,
    manifest_utterances,
)
from speechbrain_focalcodec.downstream.synthesis import Speech, TokenTTS
from speechbrain_focalcodec.downstream.text import normalise
from speechbrain_focalcodec.metrics.wer import (
    WhisperTranscriber,
    WordErrors,
    count_word_errors,
)
from speechbrain_focalcodec.utils.files import atomic_path

#: Text of a waveform [T] and its sample rate.
Recognizer = Callable[[torch.Tensor, int], str]

WHISPER = "Whisper"
CPU = {"device": "cpu"}
SPLIT = "an4test_clstk"


def main(
    model: Annotated[Path, typer.Argument(help="The trained synthesiser.")],
    data: Annotated[Path, typer.Argument(help="The folder of AN4.")],
    out: Annotated[Path, typer.Option(help="A folder for the results.")],
    whisper: Annotated[Path, typer.Option(help="A checkpoint of Whisper.")],
    chooser: Annotated[
        Path | None, typer.Option(help="Recogniser of tokens: best of tries.")
    ] = None,
    recognizer: Annotated[
        Path | None, typer.Option(help="A recogniser beside Whisper.")
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="How many tries.")] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Utterances; all by default.")
    ] = None,
    listen: Annotated[int, typer.Option(help="Utterances to write.")] = 4,
) -> None:
    """Synthesise the texts of AN4's test and count word errors."""
    recognizers: dict[str, Recognizer] = {WHISPER: WhisperTranscriber(whisper)}
    if recognizer is not None:
        recognizers[recognizer.parent.name] = load_recognizer(recognizer)
    tts = TokenTTS.from_pretrained(model, run_opts=CPU)
    choose = None
    if chooser is not None:
        choose = TokenASR.from_pretrained(chooser, run_opts=CPU)
    lines: list[dict[str, Any]] = []
    utterances = list(read_utterances(data, out, tts))[:limit]
    for number, (utt_id, text, sig, voice) in enumerate(tqdm(utterances)):
        systems = synthesize(tts, text, sig, voice, choose, tries)
        for system, speech in systems.items():
            for name, transcribe in recognizers.items():
                transcript = transcribe(speech.sig, speech.sample_rate)
                errors = count_errors(name, text, transcript)
                edits, characters = count_characters(text, transcript)
                lines.append(
                    {
                        "id": utt_id,
                        "system": system,
                        "recognizer": name,
                        "text": text,
                        "transcript": transcript,
                        "errors": errors.edits,
                        "words": errors.words,
                        "character_errors": edits,
                        "characters": characters,
                        "seconds": len(speech.sig) / speech.sample_rate,
                        "ended": speech.ended,
                    }
                )
            if number < listen:
                path = out / "audio" / f"{utt_id}_{system.split()[0]}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_audio(path, speech.sig, speech.sample_rate)
    report(out, lines, list(recognizers))


def count_errors(recognizer: str, text: str, transcript: str) -> WordErrors:
    """Count word errors.

    Whisper writes digits. Its transcripts and texts are normalised as its
    authors do, where several numbers become one word; others only in case.

    Example
    -------
    >>> count_errors("mine", "two one", "TWO")
    WordErrors(edits=1, words=2)
    """
    if recognizer == WHISPER:
        return count_word_errors(text, transcript)
    words, found = normalise(text).split(), normalise(transcript).split()
    return WordErrors(edits=count_edits(words, found), words=len(words))


def count_characters(text: str, transcript: str) -> tuple[int, int]:
    """Count character errors and characters of the text, without spaces.

    Example
    -------
    >>> count_characters("B two", "BTOO")
    (1, 4)
    """
    wanted, found = ("".join(normalise(x).split()) for x in (text, transcript))
    return count_edits(wanted, found), len(wanted)


def count_edits(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Insertions, deletions and substitutions between two sequences."""
    counts = accumulatable_wer_stats([list(wanted)], [list(found)])
    return sum(counts[k] for k in ("insertions", "deletions", "substitutions"))


def load_recognizer(folder: Path) -> Recognizer:
    """Load a recogniser that recipes/AN4/ASR has trained."""
    asr = TokenASR.from_pretrained(folder, run_opts=CPU)
    rate = asr.task.front_end.sample_rate

    def transcribe(sig: torch.Tensor, sample_rate: int) -> str:
        return asr.transcribe_batch(resample(sig, sample_rate, rate)[None])[0]

    return transcribe


def read_utterances(
    data: Path, out: Path, tts: TokenTTS
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor | None]]:
    """Yield id, text, waveform [T] and speaker embedding of the test.

    The embedding is that of another utterance of the same speaker.
    """
    manifest = prepare_an4(data, out, [SPLIT])[SPLIT]
    entries = read_manifest(manifest)
    utterances = list(manifest_utterances(manifest, data))
    voices = None
    if tts.task.config.speaker_dim is not None:
        path = out / "voices.safetensors"
        voices = SpeakerEmbeddings.compute(utterances, path=path)
    rate = tts.codec.sample_rate_input
    for utterance in utterances:
        text = entries[utterance.id].get("text")
        if text:
            voice = None if voices is None else voices([utterance.id])[0]
            sig = resample(utterance.read(), 16000, rate)
            yield utterance.id, text, sig, voice


def synthesize(
    tts: TokenTTS,
    text: str,
    sig: torch.Tensor,
    voice: torch.Tensor | None,
    chooser: TokenASR | None,
    tries: int,
) -> dict[str, Speech]:
    """Make original, resynthesis and synthesis of an utterance."""
    codec = tts.codec
    with torch.no_grad():
        toks, _ = codec.encode(sig[None])
        rec, _ = codec.decode(toks)
    rate = codec.sample_rate_output
    systems = {
        "original": Speech(sig, codec.sample_rate_input, toks[0], True),
        "resynthesis": Speech(rec[0].float(), rate, toks[0], True),
        "synthesis": tts.generate(text, voice),
    }
    if chooser is not None:

        def recognize(speech: Speech) -> str:
            if not len(speech.toks):
                return ""
            return chooser.transcribe_tokens(speech.toks)[0]

        best = tts.generate(text, voice, tries=tries, recognize=recognize)
        systems[f"best of {tries}"] = best
    return systems


def report(
    out: Path, lines: Sequence[dict[str, Any]], recognizers: Sequence[str]
) -> None:
    """Write the transcripts and the report, and print the table."""
    with (
        atomic_path(out / "transcripts.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    figures: dict[str, dict[str, float]] = {}
    for system in dict.fromkeys(line["system"] for line in lines):
        row = figures[system] = {}
        for name in recognizers:
            own = [
                line
                for line in lines
                if (line["system"], line["recognizer"]) == (system, name)
            ]
            totals = {
                key: sum(line[key] for line in own)
                for key, value in own[0].items()
                if not isinstance(value, str)
            }
            row[f"WER by {name}"] = 100 * totals["errors"] / totals["words"]
            row[f"CER by {name}"] = (
                100 * totals["character_errors"] / totals["characters"]
            )
        row["seconds"] = totals["seconds"] / len(own)
        row["ended (%)"] = 100 * totals["ended"] / len(own)
    write_json(out / "report.json", figures)
    rows = [
        [system, *(show(float(x), ".1f") for x in row.values())]
        for system, row in figures.items()
    ]
    typer.echo(markdown_table(["", *row], rows))


if __name__ == "__main__":
    typer.run(main)
