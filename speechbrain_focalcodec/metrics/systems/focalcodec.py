"""FocalCodec in an evaluation."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_focalcodec.codec import FocalCodec, fit_length
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.metrics.systems.base import Output, System
from speechbrain_focalcodec.stages import Convert
from speechbrain_focalcodec.voice.reference import VoiceReference

__all__ = ["FocalCodecSystem"]


class FocalCodecSystem(System):
    """A FocalCodec; processes batches and converts voices.

    The output of an utterance does not depend on its batch.

    Arguments
    ---------
    codec : FocalCodec, PretrainedFocalCodec, str or Path
        A model in eval mode, or the source of one: a bundled model's name, a
        folder or a hub repository.
    name : str, optional
        Name of the system; by default the model's name.
    revision : str, optional
        Commit, tag or branch of a hub repository.
    device : str or torch.device, optional
        Device of a model that is loaded here; by default the CPU.
    feats_only : bool
        Decode the encoder's features without quantization: the bound for a
        perfect quantizer. There are no tokens, no bits and no voice
        conversion, and each utterance is processed in one pass.
    k : int
        Voice conversion: number of reference frames to average.

    Raises
    ------
    ConfigError, CheckpointError
        If the model cannot be loaded.
    ValueError
        If the model is in training mode.

    Example
    -------
    >>> system = FocalCodecSystem("focalcodec_mini_50hz")
    >>> sigs = [torch.randn(16000), torch.randn(5000)]
    >>> [(len(out.sig), out.bits) for out in system.resynthesize(sigs)]
    [(16000, 650.0), (5000, 208.0)]
    >>> reference = system.prepare_reference(sigs)
    >>> len(system.convert(torch.randn(1234), reference).sig)
    1234
    """

    def __init__(
        self,
        codec: FocalCodec | PretrainedFocalCodec | str | Path,
        name: str | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        feats_only: bool = False,
        k: int = 4,
    ):
        self._context: Any = nullcontext()
        self._windows: dict[str, Any] = {"window": WINDOW, "context": CONTEXT}
        if isinstance(codec, PretrainedFocalCodec):
            self._context = codec.inference_ctx
            self._windows = {"window": codec.window, "context": codec.context}
            codec = codec.codec
        elif not isinstance(codec, FocalCodec):
            codec = FocalCodec.from_pretrained(codec, revision, device)
        if codec.training:
            raise ValueError(
                f"{codec.name} is in training mode; call its eval() first"
            )
        self.codec: FocalCodec = codec
        self.feats_only = feats_only
        self.k = k
        prefix = "feats:" if feats_only else ""
        self.name = f"{prefix}{codec.name}" if name is None else name
        self.sample_rate_input = codec.sample_rate_input
        self.sample_rate_output = codec.sample_rate_output
        self.codebook_size = None if feats_only else codec.codebook_size
        parts = [codec.fingerprint, codec.accelerated or "", prefix, f"k={k}"]
        self.fingerprint = " ".join(filter(None, parts))

    @property
    def converts(self) -> bool:
        """False without tokens."""
        return not self.feats_only

    def encode(self, sig: torch.Tensor) -> torch.Tensor:
        """Tokens [N] or features [N, C] of a waveform [T]."""
        [codes] = self._encode([sig])
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self._decode([codes])[0]

    def bits(self, codes: torch.Tensor) -> float | None:
        if self.feats_only:
            return None
        return float(len(codes) * self.codec.quantizer.dim)

    def resynthesize(self, sigs: Sequence[torch.Tensor]) -> list[Output]:
        return self._round_trip(sigs)

    def prepare_reference(self, sigs: Sequence[torch.Tensor]) -> VoiceReference:
        self._check_converts()
        with torch.no_grad(), self._context:
            reference = VoiceReference.from_sigs(
                self.codec, [sig.to(self._device) for sig in sigs]
            )
        return reference.to(self._device)

    def convert(self, sig: torch.Tensor, reference: VoiceReference) -> Output:
        self._check_converts()
        [output] = self._round_trip(
            [sig], reference.converter(self.codec, self.k)
        )
        return output

    @property
    def _device(self) -> torch.device:
        return self.codec.device

    def _check_converts(self) -> None:
        if self.feats_only:
            raise ValueError(f"{self.name} does not convert voices")

    def _round_trip(
        self, sigs: Sequence[torch.Tensor], convert: Convert | None = None
    ) -> list[Output]:
        if not sigs:
            return []
        start = time.perf_counter()
        codes = self._encode(sigs)
        decoded = self._decode(codes, convert)
        # Copying waits for the GPU.
        codes = [code.cpu() for code in codes]
        decoded = [sig.cpu() for sig in decoded]
        seconds = time.perf_counter() - start
        total = sum(map(len, sigs))
        outputs = []
        for sig, code, rec_sig in zip(sigs, codes, decoded, strict=True):
            length = self.codec.output_num_samples(len(sig))
            outputs.append(
                Output(
                    sig=fit_length(rec_sig, length),
                    bits=self.bits(code),
                    seconds=seconds * len(sig) / total,
                    toks=None if self.feats_only else code,
                )
            )
        return outputs

    def _encode(self, sigs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tokens [N] or features [N, C] of each waveform."""
        batch, lengths = self._pad(sigs)
        with torch.no_grad(), self._context:
            if self.feats_only:
                codes, lengths = self.codec.sig_to_feats(batch, lengths)
            else:
                codes, lengths = self.codec.encode(
                    batch, lengths, **self._windows
                )
        return _unpad(codes, lengths)

    def _decode(
        self, codes: Sequence[torch.Tensor], convert: Convert | None = None
    ) -> list[torch.Tensor]:
        """Waveform of each utterance's tokens or features."""
        batch, lengths = self._pad(codes)
        with torch.no_grad(), self._context:
            if self.feats_only:
                sig, lengths = self.codec.feats_to_sig(batch, lengths)
            else:
                sig, lengths = self.codec.decode(
                    batch,
                    lengths,
                    window=self._windows["window"],
                    convert=convert,
                )
        return _unpad(sig.float(), lengths)

    def _pad(
        self, items: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = pad_sequence(list(items), batch_first=True)
        lengths = torch.tensor([len(item) for item in items])
        return batch.to(self._device), lengths.to(self._device)


def _unpad(batch: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    pairs = zip(batch, lengths.tolist(), strict=True)
    return [item[:length] for item, length in pairs]
