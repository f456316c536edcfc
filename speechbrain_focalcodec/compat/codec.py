"""The published class FocalCodec, whose methods pass states by position."""

import copy
import json
import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from speechbrain_focalcodec import checkpoint, model_files
from speechbrain_focalcodec.compat.bsq import BinarySphericalQuantizer
from speechbrain_focalcodec.compat.focalnet import FocalDecoder, FocalEncoder
from speechbrain_focalcodec.compat.mel import LogMel
from speechbrain_focalcodec.compat.vocos import Vocos
from speechbrain_focalcodec.compat.wavenext import WaveNeXt
from speechbrain_focalcodec.compat.wavlm import WavLM
from speechbrain_focalcodec.config import CodecConfig, read_json, version_of
from speechbrain_focalcodec.modules import weight_names
from speechbrain_focalcodec.modules.bsq import to_sphere
from speechbrain_focalcodec.modules.masking import zero_beyond
from speechbrain_focalcodec.utils.files import atomic_path, atomic_write_text
from speechbrain_focalcodec.utils.lengths import absolute_lengths
from speechbrain_focalcodec.voice.search import nearest

__all__ = ["FocalCodec", "REGISTRY"]

REGISTRY: dict[str, Any] = {
    "BinarySphericalQuantizer": BinarySphericalQuantizer,
    "FocalDecoder": FocalDecoder,
    "FocalEncoder": FocalEncoder,
    "LogMel": LogMel,
    "Vocos": Vocos,
    "WaveNeXt": WaveNeXt,
    "WavLM": WavLM,
}
ROLES = ("encoder", "compressor", "quantizer", "decompressor", "decoder")

# The state of a part between chunks: () or [] at first.
State = tuple[Any, ...] | list[Any]


class FocalCodec(nn.Module):
    """Speech to tokens and back, as `focalcodec.FocalCodec`.

    There is a method from each of sig, feats, lats, toks and codes to the
    others that follow, and to qfeats. Their arguments are:

    * the states of the parts that run, in order: those that the call for the
      previous chunk returned with ``return_state=True``. Models that are not
      causal have no state. States are not changed and may be reused.
    * ``length``, relative lengths, float [B] in (0, 1]. The output of an
      utterance does not depend on the batch, and is zero beyond its length.
    * to a waveform, ``matching_set``, features [M, C] of a speaker: each frame
      is replaced by the mean of the ``topk`` nearest of them; and
      ``output_length``, samples to crop to, or to fill with the last sample.

    With ``return_state=True`` they return the states after the output.

    Arguments
    ---------
    encoder_name, compressor_name, quantizer_name, decompressor_name, \
    decoder_name : str
        Keys of `REGISTRY`.
    encoder_config, compressor_config, quantizer_config, decompressor_config, \
    decoder_config : dict, optional
        Options of each part, with the defaults of v0.0.2.

    Raises
    ------
    ValueError
        If there is no such part.

    Example
    -------
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz_causal")
    >>> state = []
    >>> for chunk in torch.randn(1, 3200).split(codec.chunk_size, dim=1):
    ...     toks, *state = codec.sig_to_toks(chunk, *state, return_state=True)
    >>> codec.toks_to_sig(toks).shape
    torch.Size([1, 640])
    """

    __version__ = "0.0.2"

    def __init__(
        self,
        encoder_name: str = "WavLM",
        encoder_config: dict[str, Any] | None = None,
        compressor_name: str = "FocalEncoder",
        compressor_config: dict[str, Any] | None = None,
        quantizer_name: str = "BinarySphericalQuantizer",
        quantizer_config: dict[str, Any] | None = None,
        decompressor_name: str = "FocalDecoder",
        decompressor_config: dict[str, Any] | None = None,
        decoder_name: str = "WaveNeXt",
        decoder_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model_id: str | None = None
        self.encoder = _build(encoder_name, encoder_config)
        self.compressor = _build(compressor_name, compressor_config)
        self.quantizer = _build(quantizer_name, quantizer_config)
        self.decompressor = _build(decompressor_name, decompressor_config)
        self.decoder = _build(decoder_name, decoder_config)
        for role in ROLES:
            part = getattr(self, role)
            setattr(self, f"{role}_name", type(part).__name__)
            setattr(self, f"{role}_config", part.config)

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls, config: str, overrides: dict[str, Any] | None = None, **kwargs: Any
    ) -> "FocalCodec":
        """Load a model with its weights; executes nothing that it reads.

        Arguments
        ---------
        config : str
            A JSON file, with or without its suffix, beside weights of the same
            name; or a source of the main class's `from_pretrained`.
        overrides : dict, optional
            Options to change, such as ``{"encoder_config.dropout": 0.1}``.
        **kwargs : dict
            For the hub: `revision`, `cache_dir`, `local_files_only`, `token`.

        Returns
        -------
        FocalCodec
            In eval mode.

        Raises
        ------
        ConfigError, CheckpointError
            As of the main class.
        """
        return cls.from_config(config, True, overrides, **kwargs)

    @classmethod
    def from_config(
        cls,
        config: str,
        pretrained: bool = False,
        overrides: dict[str, Any] | None = None,
        *,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "FocalCodec":
        """Build a model, with random weights unless `pretrained`, in eval mode.

        Arguments, errors and result are those of :meth:`from_pretrained`;
        `revision` is a commit, tag or branch on the hub.
        """
        file = f"{config.removesuffix('.json')}.json"
        # A configuration in a repository on the hub has two slashes.
        if not Path(file).is_file() and (
            Path(config).exists() or config.count("/") < 2
        ):
            file = config
        options: Any = kwargs
        files = model_files.find_model(file, revision, options)
        data = read_json(files.config)
        for path, value in (overrides or {}).items():
            *keys, last = path.split(".")
            table = data
            for key in keys:
                table = table.setdefault(key, {})
            table[last] = value
        if not pretrained:
            version = version_of(data) or cls.__version__
            parsed = CodecConfig.parse(data, files.config, version)
            model = cls(**parsed.model_dump())
        else:
            parsed = checkpoint.match_config(files, data)
            model = cls(**parsed.model_dump())
            weights = checkpoint.read_weights(files.weights)
            weights = weight_names.upgrade_names(weights, files.weights)
            checkpoint.load_state(model, weights, files.weights)
        model.model_id = config
        return model.eval()

    def to_config(self, config: str, pretrained: bool = False) -> None:
        """Write the configuration, and with `pretrained` the weights beside it.

        `config` is the JSON file, with or without its suffix; weights are
        safetensors.
        """
        options: dict[str, Any] = {}
        for role in ROLES:
            options[f"{role}_name"] = getattr(self, f"{role}_name")
            options[f"{role}_config"] = getattr(self, f"{role}_config")
        file = Path(f"{os.fspath(config).removesuffix('.json')}.json")
        if pretrained:
            weights = {
                name: value.detach().cpu().contiguous()
                for name, value in self.state_dict().items()
            }
            with atomic_path(file.with_suffix(".safetensors")) as temporary:
                save_file(weights, temporary, metadata=checkpoint.METADATA)
        atomic_write_text(file, json.dumps(options, indent=2) + "\n")

    def to_pretrained(self, config: str) -> None:
        """Write configuration and weights, see :meth:`to_config`."""
        self.to_config(config, pretrained=True)

    # Facts

    @property
    def sample_rate_input(self) -> int:
        """Sample rate of the waveform to encode (Hz)."""
        return self.encoder.sample_rate

    @property
    def sample_rate_output(self) -> int:
        """Sample rate of the decoded waveform (Hz)."""
        rate = self.sample_rate_input * self.decoder.upsample_factor
        return rate // self.encoder.downsample_factor

    @property
    def sample_rate(self) -> int:
        """Sample rate (Hz), if input and output have the same."""
        if self.sample_rate_input != self.sample_rate_output:
            raise RuntimeError(
                f"the model takes {self.sample_rate_input} Hz and gives "
                f"{self.sample_rate_output} Hz; use sample_rate_input or "
                "sample_rate_output"
            )
        return self.sample_rate_input

    @property
    def causal(self) -> bool:
        """Whether every part can run on a stream."""
        return all(
            getattr(self, role).causal for role in ROLES if role != "quantizer"
        )

    @property
    def chunk_size(self) -> int:
        """Samples per chunk of a stream."""
        size = self.encoder.chunk_size
        if self.causal:
            frames = self.decompressor.chunk_size, self.compressor.chunk_size
            size = math.lcm(
                size, math.lcm(*frames) * self.encoder.downsample_factor
            )
        return size

    @property
    def latency(self) -> float | None:
        """Length of one chunk (ms); None when offline."""
        if not self.causal:
            return None
        return 1000.0 * self.chunk_size / self.sample_rate_input

    @property
    def codebook(self) -> Tensor:
        """All codes [codebook_size, d]."""
        return self.quantizer.codebook

    def info(self) -> dict[str, Any]:
        """Facts about the model, by name."""
        facts: dict[str, Any] = {
            "model_id": self.model_id,
            "version": self.__version__,
        }
        for name in (
            *("sample_rate_input", "sample_rate_output"),
            *("causal", "chunk_size", "latency"),
        ):
            facts[name] = getattr(self, name)
        sizes = [value.numel() for value in self.state_dict().values()]
        return facts | {"num_total_params": sum(sizes)}

    def jit(self, classes: Sequence[type] | None = None) -> "FocalCodec":
        """A copy for inference whose parts run as TorchScript.

        The encoder and causal parts stay as they are: their work depends on the
        length of the input, or on their state. A warning names them. `classes`
        restricts the parts.
        """
        model = copy.deepcopy(self)
        weight = next(self.parameters())
        x = torch.randn(1, self.sample_rate_input).to(weight)  # a second
        for role in ROLES:
            part = getattr(model, role)
            if role == "quantizer":
                x = part.lats_to_codes(x)
                continue
            with torch.no_grad():
                y, _ = part(x)
                if classes is None or isinstance(part, tuple(classes)):
                    try:
                        part.trace(x)
                    except RuntimeError as error:
                        message = f"{role}: not traced: {error}"
                        warnings.warn(message, stacklevel=2)
            x = y
        return model

    # Stages

    def forward(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        decompressor_state: State = (),
        decoder_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Any, ...]:
        """Waveform to tokens, codes and waveform.

        Returns
        -------
        toks : torch.Tensor
            Tokens, int64 [B, N].
        codes : torch.Tensor
            Codes [B, N, d].
        rec_sig : torch.Tensor
            Waveform with the duration of `sig`.
        *states
            With `return_state`, those of the four parts.
        """
        codes, states, lengths = _chain(
            sig,
            None if length is None else absolute_lengths("length", length, sig),
            *self._sig_to_lats(encoder_state, compressor_state),
            self.quantizer.lats_to_codes,
        )
        rate = self.sample_rate_output / self.sample_rate_input
        rec_sig, more, _ = _chain(
            codes,
            lengths,
            (self.decompressor, decompressor_state),
            (self.decoder, decoder_state),
            partial(_fit, length=int(sig.shape[-1] * rate)),
        )
        out = self.quantizer.codes_to_toks(codes), codes, rec_sig
        return (*out, *states, *more) if return_state else out

    def sig_to_sig(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        decompressor_state: State = (),
        decoder_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to tokens and back."""
        _, _, rec_sig, *states = self(
            sig,
            encoder_state,
            compressor_state,
            decompressor_state,
            decoder_state,
            length,
            return_state=True,
        )
        return (rec_sig, *states) if return_state else rec_sig

    # sig to ...

    def sig_to_feats(
        self,
        sig: Tensor,
        encoder_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to features."""
        return _run(
            sig, return_state, (self.encoder, encoder_state), length=length
        )

    def sig_to_lats(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to latents."""
        lats = self._sig_to_lats(encoder_state, compressor_state)
        return _run(sig, return_state, *lats, length=length)

    def sig_to_toks(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to tokens."""
        lats = self._sig_to_lats(encoder_state, compressor_state)
        return _run(
            sig, return_state, *lats, self.quantizer.lats_to_toks, length=length
        )

    def sig_to_codes(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to codes."""
        lats = self._sig_to_lats(encoder_state, compressor_state)
        return _run(
            sig,
            return_state,
            *lats,
            self.quantizer.lats_to_codes,
            length=length,
        )

    def sig_to_qfeats(
        self,
        sig: Tensor,
        encoder_state: State = (),
        compressor_state: State = (),
        decompressor_state: State = (),
        length: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Waveform to quantized features."""
        lats = self._sig_to_lats(encoder_state, compressor_state)
        to_qfeats = (
            self.quantizer.lats_to_codes,
            (self.decompressor, decompressor_state),
        )
        return _run(sig, return_state, *lats, *to_qfeats, length=length)

    # feats to ...

    def feats_to_lats(
        self,
        feats: Tensor,
        compressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Features to latents."""
        lats = (self.compressor, compressor_state), to_sphere
        return _run(feats, return_state, *lats)

    def feats_to_toks(
        self,
        feats: Tensor,
        compressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Features to tokens."""
        lats = (self.compressor, compressor_state), to_sphere
        return _run(feats, return_state, *lats, self.quantizer.lats_to_toks)

    def feats_to_codes(
        self,
        feats: Tensor,
        compressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Features to codes."""
        lats = (self.compressor, compressor_state), to_sphere
        return _run(feats, return_state, *lats, self.quantizer.lats_to_codes)

    def feats_to_qfeats(
        self,
        feats: Tensor,
        compressor_state: State = (),
        decompressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Features to quantized features."""
        lats = (self.compressor, compressor_state), to_sphere
        to_qfeats = (
            self.quantizer.lats_to_codes,
            (self.decompressor, decompressor_state),
        )
        return _run(feats, return_state, *lats, *to_qfeats)

    def feats_to_sig(
        self,
        feats: Tensor,
        decoder_state: State = (),
        matching_set: Tensor | None = None,
        topk: int = 4,
        num_splits: int = 1,
        output_length: int | None = None,
        return_state: bool = False,
    ) -> Any:
        """Features to waveform."""
        to_sig = self._to_sig(
            decoder_state, matching_set, topk, num_splits, output_length
        )
        return _run(feats, return_state, *to_sig)

    # lats to ...

    def lats_to_toks(self, lats: Tensor) -> Tensor:
        """Latents to tokens."""
        return self.quantizer.lats_to_toks(lats)

    def lats_to_codes(self, lats: Tensor) -> Tensor:
        """Latents to codes."""
        return self.quantizer.lats_to_codes(lats)

    def lats_to_qfeats(
        self,
        lats: Tensor,
        decompressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Latents to quantized features."""
        to_qfeats = (
            self.quantizer.lats_to_codes,
            (self.decompressor, decompressor_state),
        )
        return _run(lats, return_state, *to_qfeats)

    # toks to ...

    def toks_to_codes(self, toks: Tensor) -> Tensor:
        """Tokens to codes."""
        return self.quantizer.toks_to_codes(toks)

    def toks_to_qfeats(
        self,
        toks: Tensor,
        decompressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Tokens to quantized features."""
        to_qfeats = (
            self.quantizer.toks_to_codes,
            (self.decompressor, decompressor_state),
        )
        return _run(toks, return_state, *to_qfeats)

    def toks_to_sig(
        self,
        toks: Tensor,
        decompressor_state: State = (),
        decoder_state: State = (),
        matching_set: Tensor | None = None,
        topk: int = 4,
        num_splits: int = 1,
        output_length: int | None = None,
        return_state: bool = False,
    ) -> Any:
        """Tokens to waveform."""
        to_qfeats = (
            self.quantizer.toks_to_codes,
            (self.decompressor, decompressor_state),
        )
        to_sig = self._to_sig(
            decoder_state, matching_set, topk, num_splits, output_length
        )
        return _run(toks, return_state, *to_qfeats, *to_sig)

    # codes to ...

    def codes_to_toks(self, codes: Tensor) -> Tensor:
        """Codes to tokens."""
        return self.quantizer.codes_to_toks(codes)

    def codes_to_qfeats(
        self,
        codes: Tensor,
        decompressor_state: State = (),
        return_state: bool = False,
    ) -> Any:
        """Codes to quantized features."""
        return _run(
            codes, return_state, (self.decompressor, decompressor_state)
        )

    def codes_to_sig(
        self,
        codes: Tensor,
        decompressor_state: State = (),
        decoder_state: State = (),
        matching_set: Tensor | None = None,
        topk: int = 4,
        num_splits: int = 1,
        output_length: int | None = None,
        return_state: bool = False,
    ) -> Any:
        """Codes to waveform."""
        to_sig = self._to_sig(
            decoder_state, matching_set, topk, num_splits, output_length
        )
        return _run(
            codes,
            return_state,
            (self.decompressor, decompressor_state),
            *to_sig,
        )

    # Voice conversion

    def knn(
        self,
        input: Tensor,
        matching_set: Tensor,
        topk: int = 4,
        num_splits: int = 1,
    ) -> Tensor:
        """The `topk` frames of a set that are nearest by cosine, nearest first.

        Arguments
        ---------
        input : torch.Tensor
            Frames [..., C].
        matching_set : torch.Tensor
            Candidates [M, C].
        topk : int
            Number of frames to find, at most M.
        num_splits : int
            Number of parts into which the search splits the set.

        Returns
        -------
        torch.Tensor
            Frames [..., topk, C].
        """
        frames = matching_set.to(input.device)
        norms = frames.float().norm(dim=-1)
        blocks = frames.float().split(max(1, len(frames) // num_splits))
        starts = [0]
        for block in blocks[:-1]:
            starts.append(starts[-1] + len(block))
        places = nearest(
            input.float().flatten(end_dim=-2),
            zip(starts, blocks, strict=True),
            # The cosine with a frame of zeros is 0.
            torch.where(norms > 0, 1 / norms, 0.0),
            min(topk, len(frames)),
        )
        return frames[places].reshape(*input.shape[:-1], -1, frames.shape[1])

    def _sig_to_lats(
        self, encoder_state: State, compressor_state: State
    ) -> tuple[Any, ...]:
        """Stages from waveform to latents."""
        return (
            (self.encoder, encoder_state),
            (self.compressor, compressor_state),
            to_sphere,
        )

    def _to_sig(
        self,
        state: State,
        matching_set: Tensor | None,
        topk: int,
        num_splits: int,
        output_length: int | None,
    ) -> tuple[Any, ...]:
        """Stages from quantized features to waveform."""
        match = partial(
            self._match,
            matching_set=matching_set,
            topk=topk,
            num_splits=num_splits,
        )
        return match, (self.decoder, state), partial(_fit, length=output_length)

    def _match(
        self,
        feats: Tensor,
        matching_set: Tensor | None,
        topk: int,
        num_splits: int,
    ) -> Tensor:
        """Means of the nearest frames of a set, if there is one."""
        if matching_set is None:
            return feats
        return self.knn(feats, matching_set, topk, num_splits).mean(dim=-2)


def _build(name: str, options: dict[str, Any] | None) -> Any:
    """One part, from the table."""
    if name not in REGISTRY:
        raise ValueError(f"no part {name!r}; there are {sorted(REGISTRY)}")
    return REGISTRY[name](**(options or {}))


def _chain(
    x: Tensor, lengths: Tensor | None, *stages: Any
) -> tuple[Tensor, list[State], Tensor | None]:
    """Run functions, and parts with their states, in order."""
    states: list[State] = []
    for stage in stages:
        if not isinstance(stage, tuple):
            x = zero_beyond(stage(x), lengths)
            continue
        part, state = stage
        x, kept, lengths = part.run(x, state, lengths)
        # A list or a tuple, like the input state.
        states.append(type(state)([kept]))
    return x, states, lengths


def _run(
    x: Tensor, return_state: bool, *stages: Any, length: Tensor | None = None
) -> Any:
    """Run stages; return the output, with the states if `return_state`."""
    lengths = None
    if length is not None:
        lengths = absolute_lengths("length", length, x)
    x, states, _ = _chain(x, lengths, *stages)
    return (x, *states) if return_state else x


def _fit(sig: Tensor, length: int | None) -> Tensor:
    """Crop a waveform, or fill it with its last sample."""
    if length is None:
        return sig
    missing = max(0, length - sig.shape[1])
    return torch.cat([sig[:, :length], sig[:, -1:].expand(-1, missing)], 1)
