"""Sizes of token files on real speech, and the time of entropy coding.

    python benchmarks/bitstream.py --data LibriSpeech/dev-clean

The files of the folders are encoded one by one. "As they are" they are token
files of their own; for longer durations their tokens are joined, in the order
of their paths, and cut.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from measuring import describe_machine
from reporting import markdown_table, parse_numbers, show, write_json
from speech import spread
from tqdm import tqdm

from speechbrain_focalcodec.audio import find_audio_files
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.model_files import DEFAULT_MODEL
from speechbrain_focalcodec.tokens.content import TokenFile
from speechbrain_focalcodec.tokens.focal import (
    HEADER_BYTES,
    read_focal,
    read_header,
    write_focal,
)

app = typer.Typer(add_completion=False)


@dataclass
class Sizes:
    """What files of one duration take, summed up.

    Arguments
    ---------
    speech : str
        What is in a file.
    files : int
        Number of files.
    tokens : int
        Of all of them.
    seconds : float
        Their duration.
    nominal_bits : float
        Duration times the codec's bitrate.
    plain_bytes, coded_bytes : int
        Sizes of the files, without and with entropy coding.
    smaller : int
        Files that entropy coding made smaller.
    write_s, read_s : float
        Processor time that writing and reading the coded files took.
    """

    speech: str
    files: int = 0
    tokens: int = 0
    seconds: float = 0.0
    nominal_bits: float = 0.0
    plain_bytes: int = 0
    coded_bytes: int = 0
    smaller: int = 0
    write_s: float = 0.0
    read_s: float = 0.0

    @property
    def frame_bytes(self) -> int:
        """Headers and checksums."""
        return HEADER_BYTES * self.files

    @property
    def over_nominal(self) -> float:
        """By what share plain tokens exceed the nominal bitrate."""
        return 8 * (self.plain_bytes - self.frame_bytes) / self.nominal_bits - 1

    @property
    def coded_bits(self) -> float:
        """Bits a token, without headers."""
        return 8 * (self.coded_bytes - self.frame_bytes) / self.tokens


def measure_sizes(speech: str, files: list[TokenFile], bitrate: float) -> Sizes:
    """Write and read token files.

    Arguments
    ---------
    speech : str
        What they hold, for the table.
    files : list of TokenFile
        Their content.
    bitrate : float
        The codec's (bit/s).

    Returns
    -------
    Sizes
        Of all of them.
    """
    sizes = Sizes(speech)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.focal")
        for file in files:
            write_focal(path, file)
            plain = path.stat().st_size
            start = time.process_time()
            write_focal(path, file, entropy=True)
            middle = time.process_time()
            back = read_focal(path)
            sizes.read_s += time.process_time() - middle
            sizes.write_s += middle - start
            if not torch.equal(back.toks, file.toks):
                raise AssertionError("entropy coding lost tokens")
            sizes.files += 1
            sizes.tokens += len(file.toks)
            sizes.seconds += file.duration
            sizes.nominal_bits += file.duration * bitrate
            sizes.plain_bytes += plain
            sizes.coded_bytes += path.stat().st_size
            sizes.smaller += read_header(path).entropy_coded
    return sizes


def cut_tokens(
    files: list[TokenFile], seconds: float, most: int
) -> list[TokenFile]:
    """Join the tokens of files, and cut them.

    Arguments
    ---------
    files : list of TokenFile
        All of one model.
    seconds : float
        Duration of a piece.
    most : int
        Pieces to give, chosen evenly.

    Returns
    -------
    list of TokenFile
        Whole pieces only, none when there is too little.
    """
    toks = torch.cat([file.toks for file in files])
    length = round(seconds * files[0].token_rate)
    pieces = [part for part in toks.split(length) if len(part) == length]
    rate = files[0].sample_rate
    return [
        replace(
            files[0],
            toks=part,
            num_samples=round(seconds * rate),
            sample_rate=rate,
        )
        for part in spread(pieces, most)
    ]


def sizes_table(results: list[Sizes], bits: int) -> str:
    """Write what files of each duration take.

    Arguments
    ---------
    results : list of Sizes
        From :func:`measure_sizes`.
    bits : int
        Of a token.

    Returns
    -------
    str
        Markdown.
    """
    head = [
        *("speech in a file", "files", "plain file (bytes)", "over nominal"),
        *("coded file (bytes)", "bits a token", "saved", "files smaller"),
        *("coding (CPU s/h)", "decoding (CPU s/h)"),
    ]
    rows = []
    for sizes in results:
        hours = sizes.seconds / 3600
        rows.append(
            [
                sizes.speech,
                str(sizes.files),
                f"{sizes.plain_bytes / sizes.files:.0f}",
                f"{sizes.over_nominal:.2%} + {HEADER_BYTES}",
                f"{sizes.coded_bytes / sizes.files:.0f}",
                f"{sizes.coded_bits:.2f} of {bits}",
                show(1 - sizes.coded_bytes / sizes.plain_bytes, ".1%"),
                str(sizes.smaller),
                f"{sizes.write_s / hours:.1f}",
                f"{sizes.read_s / hours:.1f}",
            ]
        )
    return markdown_table(head, rows)


@app.command()
def bitstream(
    data: Annotated[
        list[Path],
        typer.Option(help="Folder of real speech; may be given repeatedly."),
    ],
    durations: Annotated[
        str, typer.Option(help="Of the pieces (s), besides whole files.")
    ] = "2,5,10,60,600,3600",
    pieces: Annotated[
        int, typer.Option(min=1, help="Of each duration, at most.")
    ] = 100,
    model: Annotated[
        str, typer.Option(help="A model's name, folder or repository.")
    ] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure the sizes of token files, plain and entropy-coded."""
    seconds = parse_numbers(durations, 1.0)
    paths = [path for folder in data for path in find_audio_files(folder)]
    if not paths:
        raise DataError(f"{data[0]}: has no audio files; check the path")
    interface = PretrainedFocalCodec.from_pretrained(
        model, run_opts={"device": device}
    )
    codec = interface.codec
    files = [
        interface.tokenize_file(path)
        for path in tqdm(paths, desc="encode", unit="file", disable=None)
    ]
    total = sum(file.duration for file in files)
    average = total / len(files)
    results = [
        measure_sizes(f"as they are ({average:.1f} s)", files, codec.bitrate)
    ]
    for length in seconds:
        parts = cut_tokens(files, length, pieces)
        if not parts:
            typer.echo(f"{length:g} s: there is less speech", err=True)
            continue
        results.append(measure_sizes(f"{length:g} s", parts, codec.bitrate))
    machine = describe_machine(torch.device(device))
    bits = codec.codebook_size.bit_length() - 1
    typer.echo(
        f"{codec.name}, {len(files)} files, {total / 3600:.2f} h, "
        f"{machine['cpu']}\n\n{sizes_table(results, bits)}"
    )
    if out is not None:
        write_json(
            out,
            {
                "machine": machine,
                "model": codec.name,
                "data": [str(folder) for folder in data],
                "results": [asdict(sizes) for sizes in results],
            },
        )


if __name__ == "__main__":
    app()
