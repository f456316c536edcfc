"""Word error rates of synthesis beside those of resynthesis and originals.

From the repository's root, with the extras ``tts`` and ``whisper``, on what
recipes/AN4 have trained:

    python benchmarks/synthesis.py results/tts_small/model AN4 \\
        --whisper tiny.en.pt --chooser results/asr_an4/tokens_1/model \\
        --ear results/asr_an4/log_mel_1/model --out results/tts_wer

The texts are those of AN4's test; each is said in the voice of its speaker,
learnt from another of his utterances. ``--chooser``, a recogniser of tokens,
adds a row with the best of several tries by its judgement. ``--ear`` is
another one that hears everything beside Whisper. It writes ``report.json``,
what was heard (``heard.csv``) and the audio of the first utterances.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from reporting import markdown_table, show, write_json
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
Ear = Callable[[torch.Tensor, int], str]

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
    ear: Annotated[
        Path | None, typer.Option(help="A recogniser beside Whisper.")
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="How many tries.")] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Utterances; all by default.")
    ] = None,
    listen: Annotated[int, typer.Option(help="Utterances to write.")] = 4,
) -> None:
    """Say what AN4's test says, and let recognisers hear it."""
    ears: dict[str, Ear] = {WHISPER: WhisperTranscriber(whisper)}
    if ear is not None:
        ears[ear.parent.name] = task_ear(ear)
    tts = TokenTTS.from_pretrained(model, run_opts=CPU)
    choose = None
    if chooser is not None:
        choose = TokenASR.from_pretrained(chooser, run_opts=CPU)
    heard: list[dict[str, Any]] = []
    utterances = list(read(data, out, tts))[:limit]
    for number, (utt_id, text, sig, voice) in enumerate(tqdm(utterances)):
        systems = say(tts, text, sig, voice, choose, tries)
        for system, speech in systems.items():
            for name, each in ears.items():
                found = each(speech.sig, speech.sample_rate)
                errors = count_errors(name, text, found)
                edits, characters = count_characters(text, found)
                heard.append(
                    {
                        "id": utt_id,
                        "system": system,
                        "ear": name,
                        "text": text,
                        "heard": found,
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
    report(out, heard, list(ears))


def count_errors(ear: str, text: str, heard: str) -> WordErrors:
    """Word errors: Whisper's in its authors' spelling, others' as they write.

    Whisper writes digits; its authors' spelling makes one word of several
    numbers, so that its rates count fewer words.

    Arguments
    ---------
    ear : str
        Who heard it.
    text : str
        What was to be said.
    heard : str
        What was heard.

    Returns
    -------
    WordErrors
        Edits and words of the text.

    Example
    -------
    >>> count_errors("mine", "two one", "TWO")
    WordErrors(edits=1, words=2)
    """
    if ear == WHISPER:
        return count_word_errors(text, heard)
    wanted, found = normalise(text).split(), normalise(heard).split()
    return WordErrors(edits=edits_of(wanted, found), words=len(wanted))


def count_characters(text: str, heard: str) -> tuple[int, int]:
    """Character errors, without the spaces, in which recognisers differ most.

    Arguments
    ---------
    text : str
        What was to be said.
    heard : str
        What was heard.

    Returns
    -------
    edits : int
        Insertions, deletions and substitutions.
    characters : int
        Of the text.

    Example
    -------
    >>> count_characters("B two", "BTOO")
    (1, 4)
    """
    wanted, found = ("".join(normalise(x).split()) for x in (text, heard))
    return edits_of(wanted, found), len(wanted)


def edits_of(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Edits from one sequence to another.

    Arguments
    ---------
    wanted, found : sequence of str
        Words or characters.

    Returns
    -------
    int
        Insertions, deletions and substitutions.

    Example
    -------
    >>> edits_of(["ONE", "TWO"], ["ONE"])
    1
    """
    counts = accumulatable_wer_stats([list(wanted)], [list(found)])
    return sum(counts[k] for k in ("insertions", "deletions", "substitutions"))


def task_ear(folder: Path) -> Ear:
    """A recogniser of :mod:`recipes.AN4.ASR`.

    Arguments
    ---------
    folder : Path
        What the recipe has left.

    Returns
    -------
    callable
        Text of a waveform and its sample rate.
    """
    asr = TokenASR.from_pretrained(folder, run_opts=CPU)

    def hear(sig: torch.Tensor, sample_rate: int) -> str:
        rate = asr.task.front_end.sample_rate
        return asr.transcribe_batch(resample(sig, sample_rate, rate)[None])[0]

    return hear


def read(
    data: Path, out: Path, tts: TokenTTS
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor | None]]:
    """The utterances of the test.

    Arguments
    ---------
    data : Path
        AN4.
    out : Path
        Where the manifest goes.
    tts : TokenTTS
        Says the sample rate, and whether voices are wanted.

    Yields
    ------
    utt_id : str
        Id.
    text : str
        What is said.
    sig : torch.Tensor
        Waveform [T] at the codec's input rate.
    voice : torch.Tensor or None
        Embedding of another utterance of the same speaker.
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


def say(
    tts: TokenTTS,
    text: str,
    sig: torch.Tensor,
    voice: torch.Tensor | None,
    chooser: TokenASR | None,
    tries: int,
) -> dict[str, Speech]:
    """What each system makes of an utterance.

    Arguments
    ---------
    tts : TokenTTS
        The synthesiser.
    text : str
        What is said.
    sig : torch.Tensor
        How it was said, [T].
    voice : torch.Tensor, optional
        Embedding.
    chooser : TokenASR, optional
        Chooses among tries.
    tries : int
        How many.

    Returns
    -------
    dict
        Speech by system.
    """
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


def report(out: Path, heard: list[dict[str, Any]], ears: list[str]) -> None:
    """Write and print what was measured.

    Arguments
    ---------
    out : Path
        The folder.
    heard : list of dict
        By utterance, system and ear.
    ears : list of str
        Their names.
    """
    with (
        atomic_path(out / "heard.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(heard[0]))
        writer.writeheader()
        writer.writerows(heard)
    rows = []
    figures = {}
    for system in dict.fromkeys(line["system"] for line in heard):
        cells: dict[str, float] = {}
        for ear in ears:
            own = [
                line
                for line in heard
                if (line["system"], line["ear"]) == (system, ear)
            ]
            cells[f"WER by {ear}"] = rate(own, "errors", "words")
            cells[f"CER by {ear}"] = rate(own, "character_errors", "characters")
        ended = sum(line["ended"] for line in own) / len(own)
        seconds = sum(line["seconds"] for line in own) / len(own)
        figures[system] = {
            **cells,
            "ended": ended,
            "seconds": seconds,
            "utterances": len(own),
        }
        rows.append(
            [
                system,
                *(show(cell, ".1f") for cell in cells.values()),
                show(seconds, ".2f"),
                show(ended, ".0%"),
            ]
        )
    write_json(out / "report.json", figures)
    head = ["", *cells, "seconds", "ended"]
    print(markdown_table(head, rows))


def rate(lines: list[dict[str, Any]], errors: str, of: str) -> float:
    """Percentage of errors, over all utterances.

    Arguments
    ---------
    lines : list of dict
        By utterance.
    errors, of : str
        Their keys.

    Returns
    -------
    float
        In percent.

    Example
    -------
    >>> rate([{"errors": 1, "words": 3}, {"errors": 0, "words": 1}],
    ...      "errors", "words")
    25.0
    """
    return 100 * sum(x[errors] for x in lines) / sum(x[of] for x in lines)


if __name__ == "__main__":
    typer.run(main)
