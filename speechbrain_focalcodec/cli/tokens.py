"""The commands ``encode`` and ``decode``, and the facts of a token file."""

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from speechbrain_focalcodec.cli.batch import Jobs, plan, run
from speechbrain_focalcodec.cli.options import (
    BatchSize,
    Channel,
    Context,
    Device,
    Input,
    Model,
    Output,
    Overwrite,
    Precision,
    Strict,
    Window,
)
from speechbrain_focalcodec.errors import TokenError
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["TokenFormat", "decode", "encode", "token_facts"]


class TokenFormat(str, Enum):
    """Formats of token files; each is also their suffix."""

    focal = "focal"
    npz = "npz"


# Files of a folder get the first.
_SUFFIXES = tuple(f".{format.value}" for format in TokenFormat)


def encode(
    input: Input,
    output: Output,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    window: Window = WINDOW,
    context: Context = CONTEXT,
    batch_size: BatchSize = 1,
    channel: Channel = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    format: Annotated[
        TokenFormat | None,
        typer.Option(
            help="Format of the token files. By default the output's name "
            "decides; in a folder it is focal."
        ),
    ] = None,
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy",
            help="Code the entropy of .focal files: they shrink by about a "
            "tenth. Needs the extra 'entropy', here and to decode.",
        ),
    ] = False,
) -> None:
    """Turn audio files into token files (.focal, or .npz)."""
    from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.tokens.files import save_tokens

    suffixes = _SUFFIXES if format is None else (f".{format.value}",)
    jobs = plan(input, output, AUDIO_SUFFIXES, suffixes, overwrite)
    if entropy:
        _check_entropy(format, jobs)
    interface = load_model(
        *(model, device, precision, window, context, batch_size),
        *(channel, strict),
    )

    def convert(source: Path, target: Path) -> None:
        save_tokens(target, interface.tokenize_file(source), entropy=entropy)

    run(jobs, convert, "encode")


def _check_entropy(format: TokenFormat | None, jobs: Jobs) -> None:
    """Refuse --entropy without support for it, before a model is loaded."""
    names = [target.suffix.lower() for _, target in jobs.pairs]
    if format == TokenFormat.npz or ".npz" in names:
        raise typer.BadParameter(
            "only .focal files are entropy-coded", param_hint="--entropy"
        )
    try:
        import_extra("constriction", "entropy")
    except ImportError as error:
        raise typer.BadParameter(str(error), param_hint="--entropy") from error


def decode(
    input: Input,
    output: Output,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    window: Window = WINDOW,
    batch_size: BatchSize = 1,
    overwrite: Overwrite = False,
) -> None:
    """Turn token files (.focal or .npz) into audio files."""
    from speechbrain_focalcodec.audio.files import WRITE_FORMATS
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.tokens.content import PREFIX_DIGITS
    from speechbrain_focalcodec.tokens.files import load_tokens

    jobs = plan(input, output, _SUFFIXES, tuple(WRITE_FORMATS), overwrite)
    # A decoder needs no context.
    interface = load_model(model, device, precision, window, 0.0, batch_size)
    codec, fingerprint = interface.codec, interface.fingerprint

    def convert(source: Path, target: Path) -> None:
        file = load_tokens(source)
        if not file.belongs_to(fingerprint):
            # Some files do not name their model.
            name = f"{file.model}, " if file.model else ""
            raise TokenError(
                f"{source}: holds tokens of another model ({name}fingerprint "
                f"{file.fingerprint[:PREFIX_DIGITS]}) than {codec.name} "
                f"({fingerprint[:PREFIX_DIGITS]}); give theirs with --model"
            )
        for fact, got, want in (
            ("token_rate", file.token_rate, codec.token_rate),
            ("codebook_size", file.codebook_size, codec.codebook_size),
        ):
            # .focal files hold the rate in single precision.
            if not math.isclose(got, want, rel_tol=1e-6):
                raise TokenError(
                    f"{source}: claims a {fact} of {got}, its model has "
                    f"{want}; encode the audio again"
                )
        interface.decode_to_file(
            file.toks, target, file.num_samples_at(codec.sample_rate_output)
        )

    run(jobs, convert, "decode")


def token_facts(path: Path) -> dict[str, Any]:
    """Read and check a token file; return its facts by name.

    Facts that the file does not store are None. The bitrate is that of the
    whole file (bit/s). Raises TokenError if it cannot be read.
    """
    from speechbrain_focalcodec.tokens.files import load_tokens
    from speechbrain_focalcodec.tokens.focal import is_focal, read_header

    file = load_tokens(path)
    size = path.stat().st_size
    facts: dict[str, Any] = {"format": "npz", "entropy_coded": False}
    if is_focal(path):
        header = read_header(path)
        facts = {"format": "focal", "entropy_coded": header.entropy_coded}
    return {
        **facts,
        "size": size,
        "model": file.model or None,
        "fingerprint": file.fingerprint,
        "sample_rate": file.sample_rate,
        "num_samples": file.num_samples,
        "duration": round(file.duration, 6),
        "num_tokens": len(file.toks),
        "token_rate": file.token_rate,
        "codebook_size": file.codebook_size,
        "bitrate": round(8 * size / file.duration, 1),
    }
