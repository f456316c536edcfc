"""The command ``demo``: a codec at work on one clip."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechbrain_focalcodec.cli.options import Model
from speechbrain_focalcodec.errors import AudioError

if TYPE_CHECKING:
    import torch

    from speechbrain_focalcodec.inference import PretrainedFocalCodec

__all__ = ["demo"]

DEMO_CLIP = Path(__file__).parent.parent / "assets" / "demo.flac"
SHOWN_TOKENS = 12


def demo(
    audio: Annotated[
        Path | None,
        typer.Argument(help="Audio to use in place of the bundled clip."),
    ] = None,
    model: Model = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Decode the clip as live audio, chunk by chunk at its own "
            "pace, and report the latency; needs a causal model.",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the demo's files.")
    ] = Path("demo_output"),
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:0.")] = "cpu",
) -> None:
    """Turn a clip into tokens and back, and show the result.

    Prints the model's rates, the tokens, the speed and STOI; writes the
    tokens, the reconstruction and a picture of both spectrograms.
    """
    from speechbrain_focalcodec.audio.files import read_audio
    from speechbrain_focalcodec.cli.model import load_model
    from speechbrain_focalcodec.model_files import DEFAULT_CAUSAL_MODEL
    from speechbrain_focalcodec.streaming.live import stream_audio
    from speechbrain_focalcodec.streaming.sessions import StreamingResynthesizer
    from speechbrain_focalcodec.tokens.files import save_tokens
    from speechbrain_focalcodec.utils.plotting import plot_spectrograms

    audio = DEMO_CLIP if audio is None else audio
    if model is None and stream:
        model = DEFAULT_CAUSAL_MODEL
    interface = load_model(model, device)
    rate = interface.codec.sample_rate_output
    reconstruction = out / "reconstruction.wav"

    if stream:  # refuses an offline model
        session = StreamingResynthesizer(interface.codec)
    tokens = interface.tokenize_file(audio)
    if stream:
        report = stream_audio(session, audio, reconstruction, realtime=True)
        speed = report.rows()
    else:
        interface.decode_to_file(
            tokens.toks, reconstruction, tokens.num_samples_at(rate)
        )
        speed = _measure_speed(interface, audio, tokens.toks)
    save_tokens(out / "tokens.focal", tokens)
    # Both at the output's rate, so that they compare sample by sample.
    sig, _ = read_audio(audio, rate)
    rec_sig, _ = read_audio(reconstruction)
    plot_spectrograms(
        out / "spectrograms.png",
        {"Original": sig, "Reconstruction": rec_sig},
        rate,
    )

    shown = " ".join(map(str, tokens.toks[:SHOWN_TOKENS].tolist()))
    more = " ..." if len(tokens.toks) > SHOWN_TOKENS else ""
    rows = {
        "Model": tokens.model,
        "Clip": f"{audio} ({len(sig) / rate:.2f} s)",
        "Token rate": f"{tokens.token_rate:g} Hz",
        "Bitrate": f"{interface.codec.bitrate / 1000:.2f} kbit/s",
        "Tokens": f"{len(tokens.toks)} of 0..{tokens.codebook_size - 1}: "
        f"{shown}{more}",
        **speed,
        "STOI": _describe_stoi(sig, rec_sig, rate),
        "Written to": f"{out}/: tokens.focal, reconstruction.wav, "
        "spectrograms.png",
    }
    for name, value in rows.items():
        typer.echo(f"{name:<12}{value}")


def _measure_speed(
    interface: "PretrainedFocalCodec", audio: Path, toks: "torch.Tensor"
) -> dict[str, str]:
    """Encode and decode again, without loading and files."""
    from speechbrain_focalcodec.audio.files import read_audio

    rate = interface.codec.sample_rate_input
    wavs = read_audio(audio, rate)[0][None]
    duration = wavs.shape[1] / rate
    encode_s = _seconds(lambda: interface.encode_batch(wavs)[0].cpu())
    decode_s = _seconds(lambda: interface.decode_batch(toks[None])[0].cpu())
    return {
        "Encoding": _describe_speed(encode_s, duration),
        "Decoding": _describe_speed(decode_s, duration),
    }


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _describe_speed(seconds: float, duration: float) -> str:
    return (
        f"real-time factor {seconds / duration:.4f} "
        f"({duration / seconds:.1f} s of audio a second)"
    )


def _describe_stoi(
    sig: "torch.Tensor", rec_sig: "torch.Tensor", rate: int
) -> str:
    from speechbrain_focalcodec.metrics.stoi import stoi

    try:
        return f"{stoi(sig, rec_sig, rate):.3f} (1 is the original)"
    except (AudioError, ImportError) as error:
        return f"not measured: {error}"
