"""Word error rates by Moonshine, as a metric of `focalcodec evaluate`.

The mini models were trained with Whisper tiny.en in their loss, so dWER by
Whisper favours them. Moonshine base (Jeffries et al., 2024) took no part in
their training. Download it from npm and PyPI into a folder:

    npm pack @usefulsensors/moonshine-js@0.1.9 && tar xzf *moonshine-js*.tgz
    pip download --no-deps useful-moonshine-onnx && unzip -jo \\
        useful_moonshine_onnx*.whl "*/tokenizer.json"

Then, from the repository's root, with the extras ``evaluate`` and ``onnx``:

    MOONSHINE=FOLDER PYTHONPATH=benchmarks focalcodec evaluate DATA \\
        --model focalcodec_mini_50hz --metrics moonshine:MoonshineErrors \\
        --out results/moonshine
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.metrics.base import SAMPLE_RATE
from speechbrain_focalcodec.metrics.dwer import WordErrorRates
from speechbrain_focalcodec.utils.files import sha256_of

LAYERS, HEADS, HEAD_DIM = 8, 8, 52  # of Moonshine base
BEGIN, END = 1, 2
# The authors' limit in tokens a second: on noise the decoder may not stop.
MAX_TOKEN_RATE = 6.5


class Moonshine:
    """Recognises English speech, greedily, on the CPU.

    Arguments
    ---------
    folder : Path
        With ``package/dist/model/base/quantized/*.onnx`` and
        ``tokenizer.json``.
    """

    def __init__(self, folder: Path):
        models = folder / "package/dist/model/base/quantized"
        self.encoder_path = models / "encoder_model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            for path in (
                self.encoder_path,
                models / "decoder_model_merged.onnx",
            )
        )
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.masked = "attention_mask" in _inputs(self.encoder)

    def __call__(self, sig: torch.Tensor) -> str:
        """Transcribe a waveform [T] at 16 kHz, of at most 30 s."""
        audio = sig.numpy().astype(np.float32)[None]
        missing = max(0, SAMPLE_RATE // 10 - audio.shape[1])
        audio = np.pad(audio, ((0, 0), (0, missing)))
        mask = {"attention_mask": np.ones(audio.shape, np.int64)}
        hidden = self.encoder.run(
            None, {"input_values": audio, **(mask if self.masked else {})}
        )[0]
        fixed = {"encoder_hidden_states": hidden}
        if "encoder_attention_mask" in _inputs(self.decoder):
            fixed["encoder_attention_mask"] = mask["attention_mask"]
        past = {
            f"past_key_values.{layer}.{side}.{kind}": np.zeros(
                (0, HEADS, 1, HEAD_DIM), np.float32
            )
            for layer in range(LAYERS)
            for side in ("decoder", "encoder")
            for kind in ("key", "value")
        }
        toks = [BEGIN]
        for step in range(
            max(8, int(audio.shape[1] / SAMPLE_RATE * MAX_TOKEN_RATE))
        ):
            logits, *present = self.decoder.run(
                None,
                {
                    "input_ids": np.array([[toks[-1]]], np.int64),
                    "use_cache_branch": np.array([step > 0]),
                    **fixed,
                    **past,
                },
            )
            tok = int(logits[0, -1].argmax())
            if tok == END:
                break
            toks.append(tok)
            for name, value in zip(past, present, strict=True):
                # The encoder's keys and values come in the first step only.
                if step == 0 or ".decoder." in name:
                    past[name] = value
        return self.tokenizer.decode(toks[1:]).strip()


class MoonshineErrors(WordErrorRates):
    """dWER and WER by Moonshine base."""

    def __init__(self) -> None:
        folder = Path(os.environ.get("MOONSHINE", "moonshine"))
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError(
                f"{folder}: has no Moonshine; set MOONSHINE to its folder, "
                "see benchmarks/moonshine.py"
            )
        recognise = Moonshine(folder)
        super().__init__(
            lambda sigs: [recognise(sig) for sig in sigs],
            "moonshine",
            "Moonshine",
        )
        self.fingerprint = sha256_of(recognise.encoder_path)


def _inputs(session: onnxruntime.InferenceSession) -> set[str]:
    return {node.name for node in session.get_inputs()}
