"""Draws the README's picture: speech, its tokens, and speech again.

python docs/examples/overview.py docs/images/overview.png
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import speechbrain_focalcodec
from speechbrain_focalcodec import PretrainedFocalCodec
from speechbrain_focalcodec.audio import read_audio

CLIP = Path(speechbrain_focalcodec.__file__).parent / "assets" / "demo.flac"
SECONDS = 3


def main(path: str) -> None:
    """Encode the bundled clip, decode its tokens and draw all three."""
    model = PretrainedFocalCodec.from_pretrained("focalcodec_mini_50hz")
    codec = model.codec
    sig, rate = read_audio(CLIP, codec.sample_rate_input)
    sig = sig[: SECONDS * rate]
    toks, _ = model.encode_batch(sig[None])
    rec_sig, _ = model.decode_batch(toks)
    codes = codec.toks_to_codes(toks)[0]  # [N, 13], of two values

    figure, axes = plt.subplots(3, figsize=(8, 4.5), layout="constrained")
    axes[0].set_title(f"speech: {rate / 1000:g} kHz, 256 kbps", loc="left")
    axes[1].set_title(
        f"{codec.token_rate:g} tokens a second of {codes.shape[1]} bits: "
        f"{codec.bitrate / 1000:.2f} kbps",
        loc="left",
    )
    axes[2].set_title("speech, decoded from these tokens", loc="left")
    for axis, wave in ((axes[0], sig), (axes[2], rec_sig[0])):
        axis.specgram(
            wave.numpy() + 1e-6, NFFT=512, Fs=rate, noverlap=384, vmin=-130
        )
        axis.set_ylabel("kHz")
        axis.set_yticks([0, 4000, 8000], ["0", "4", "8"])
    axes[1].imshow(codes.T > 0, "Greys", aspect="auto", interpolation="none")
    axes[1].set_ylabel("bit")
    for axis in axes:
        axis.set_xticks([])
    figure.savefig(path, dpi=100)
    Image.open(path).quantize(64).save(path, optimize=True)  # a small file


if __name__ == "__main__":
    main(sys.argv[1])
