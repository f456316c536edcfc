"""Makes the examples in docs/examples/: audio and spectrograms.

From the repository's root:

    python benchmarks/examples.py docs/examples/audio CLIP.flac ... \\
        --model focalcodec_mini_50hz --model codec2:1300

Each codec resynthesises each clip. Writes the original and the results as FLAC
files, and one picture of their spectrograms for each clip. A model is one of
`focalcodec evaluate --model`.
"""

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from speechbrain_focalcodec.audio import read_audio, resample, write_audio
from speechbrain_focalcodec.metrics.base import SAMPLE_RATE
from speechbrain_focalcodec.metrics.systems.original import ORIGINAL
from speechbrain_focalcodec.metrics.systems.registry import make_system
from speechbrain_focalcodec.utils.plotting import plot_spectrograms


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write into.")],
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    model: Annotated[
        list[str], typer.Option(help="Codecs, as of `focalcodec evaluate`.")
    ],
    start: Annotated[float, typer.Option(min=0, help="Seconds to skip.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Longest example.")
    ] = 8.0,
) -> None:
    """Write resynthesised clips and their spectrograms."""
    out.mkdir(parents=True, exist_ok=True)
    systems = [make_system(spec) for spec in (ORIGINAL, *model)]
    for clip in clips:
        sig, _ = read_audio(clip, SAMPLE_RATE)
        first = round(start * SAMPLE_RATE)
        sig = sig[first : first + round(seconds * SAMPLE_RATE)]
        sigs = {}
        for system in systems:
            [output] = system.resynthesize(
                [resample(sig, SAMPLE_RATE, system.sample_rate_input)]
            )
            title = system.name
            if output.bits is not None and system.name != ORIGINAL:
                kbps = output.bits * SAMPLE_RATE / len(sig) / 1000
                title += f", {kbps:.2f} kbps"
            sigs[title] = resample(
                output.sig, system.sample_rate_output, SAMPLE_RATE
            )
            name = system.name.replace(":", "_").replace("/", "_")
            path = out / f"{clip.stem}-{name}.flac"
            write_audio(path, sigs[title], SAMPLE_RATE)
        picture = out / f"{clip.stem}.png"
        plot_spectrograms(picture, sigs, SAMPLE_RATE)
        # A quarter of the size.
        with Image.open(picture) as image:
            small = image.convert("P", palette=Image.Palette.ADAPTIVE)
        small.save(picture, optimize=True)
        typer.echo(f"{picture} and {len(sigs)} files beside it")


if __name__ == "__main__":
    typer.run(main)
