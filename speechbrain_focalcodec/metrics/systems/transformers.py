"""EnCodec, DAC and Mimi, by `transformers` (extra ``benchmark``)."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.checkpoint import fingerprint_of
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.hub import is_repository
from speechbrain_focalcodec.metrics.systems.base import System
from speechbrain_focalcodec.utils.extras import import_extra

__all__ = ["Dac", "Encodec", "Mimi", "TransformersSystem"]


class TransformersSystem(System):
    """A codec of `transformers`; processes one utterance at a time.

    Weights are read from safetensors only, and no code of a repository is
    executed. Bits are tokens times the bits of a codebook.

    Arguments
    ---------
    setting : float
        Bitrate in kbit/s or number of codebooks.
    source : str or Path, optional
        A folder written by ``save_pretrained`` or a hub repository; by default
        `REPOSITORY`.
    revision : str, optional
        Commit, tag or branch on the hub; by default `REVISION`.
    device : str or torch.device, optional
        Device of the model; by default the CPU.

    Attributes
    ----------
    FAMILY : str
        Name of the family; the class of the model without ``Model``.
    REPOSITORY, REVISION : str
        Default source. The main branch can change; the fingerprint identifies
        the weights.

    Raises
    ------
    CheckpointError
        If the model cannot be loaded, is of another family or lacks weights.
    ImportError
        If `transformers` is not installed or too old.
    ValueError
        If the model does not have the setting.
    """

    FAMILY: str
    REPOSITORY: str
    REVISION = "main"

    def __init__(
        self,
        setting: float,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ):
        own = "" if source is None else f"{source}@"
        self.name = f"{self.FAMILY.lower()}:{own}{setting:g}"
        self.setting = setting
        self.model = self._load(
            self.REPOSITORY if source is None else source,
            revision or self.REVISION,
        ).to(device)
        self._check(self.model.config)
        rate = int(self.model.config.sampling_rate)
        self.sample_rate_input = self.sample_rate_output = rate
        weights = fingerprint_of({}, self.model.state_dict())
        self.fingerprint = f"{weights} {setting:g}"

    def encode(self, sig: torch.Tensor) -> tuple[torch.Tensor, Any]:
        hop = math.prod(self._strides(self.model.config))
        sig = torch.nn.functional.pad(sig, (0, -len(sig) % hop))
        with torch.inference_mode():
            return self._encode(sig.to(self.model.device)[None, None])

    def decode(self, codes: tuple[torch.Tensor, Any]) -> torch.Tensor:
        with torch.inference_mode():
            return self._decode(*codes).flatten().float().cpu()

    def bits(self, codes: tuple[torch.Tensor, Any]) -> float:
        bits = math.log2(self.model.config.codebook_size)
        return codes[0].numel() * bits

    def _load(self, source: str | Path, revision: str) -> Any:
        transformers = import_extra("transformers", "benchmark")
        try:
            family = getattr(transformers, f"{self.FAMILY}Model")
        except (AttributeError, RuntimeError) as error:
            raise ImportError(
                f"This transformers has no {self.FAMILY}: {error}. Install a "
                "newer one with: pip install --upgrade transformers"
            ) from error
        folder = Path(source).expanduser()
        if not folder.is_dir() and not is_repository(str(source)):
            raise CheckpointError(
                f"{source}: neither a folder nor a hub repository (owner/name)"
            )
        at = f"{source}: " if folder.is_dir() else f"{source} ({revision}): "
        place = str(folder if folder.is_dir() else source)
        try:
            config = transformers.AutoConfig.from_pretrained(
                place, revision=revision
            )
            kind = config.model_type
            if kind != self.FAMILY.lower():
                raise ValueError(f"it is a {kind}")
            model, report = family.from_pretrained(
                place,
                revision=revision,
                use_safetensors=True,
                output_loading_info=True,
            )
        # The libraries raise many kinds of errors.
        except Exception as error:
            raise CheckpointError(
                f"{at}cannot be loaded as {self.FAMILY}; give a folder or a "
                f"hub repository with safetensors weights ({error})"
            ) from error
        # transformers would initialise these randomly.
        lacking = report["missing_keys"] or report["mismatched_keys"]
        if lacking:
            raise CheckpointError(
                f"{at}has no weights for {sorted(map(str, lacking))[0]}"
            )
        return model.eval()

    @abstractmethod
    def _check(self, config: Any) -> None:
        """Raise an error if the model does not have the setting."""

    @abstractmethod
    def _strides(self, config: Any) -> list[int]:
        """Factors of the hop length."""

    @abstractmethod
    def _encode(self, sig: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Waveform [1, 1, T] to tokens and further arguments of `_decode`."""

    @abstractmethod
    def _decode(self, toks: torch.Tensor, rest: Any) -> torch.Tensor:
        """Tokens to a waveform [1, 1, T] or [1, T]."""


class Encodec(TransformersSystem):
    """EnCodec at a bitrate in kbit/s, such as 1.5, 3 or 6; mono models only."""

    FAMILY = "Encodec"
    REPOSITORY = "facebook/encodec_24khz"

    def _check(self, config: Any) -> None:
        if config.audio_channels != 1 or config.chunk_length_s is not None:
            raise ValueError(
                f"{self.name}: must be a mono model without chunks, such as "
                f"{self.REPOSITORY}"
            )
        rates = config.target_bandwidths
        if self.setting not in rates:
            raise ValueError(
                f"{self.name}: must have one of {list(rates)} kbit/s, not "
                f"{self.setting:g}"
            )

    def _strides(self, config: Any) -> list[int]:
        return list(config.upsampling_ratios)

    def _encode(self, sig: torch.Tensor) -> tuple[torch.Tensor, Any]:
        encoded = self.model.encode(sig, bandwidth=self.setting)
        return encoded.audio_codes, encoded.audio_scales

    def _decode(self, toks: torch.Tensor, rest: Any) -> torch.Tensor:
        return self.model.decode(toks, rest).audio_values


class _Codebooks(TransformersSystem):
    """A model that uses its first `setting` codebooks."""

    # Key of their number in the config, and argument of `encode`.
    NUMBER: str
    KEYWORD: str

    def _check(self, config: Any) -> None:
        most = getattr(config, self.NUMBER)
        if self.setting not in range(1, most + 1):
            raise ValueError(
                f"{self.name}: must have 1 to {most} codebooks, not "
                f"{self.setting:g}"
            )

    def _encode(self, sig: torch.Tensor) -> tuple[torch.Tensor, Any]:
        options = {self.KEYWORD: int(self.setting)}
        return self.model.encode(sig, **options).audio_codes, None

    def _decode(self, toks: torch.Tensor, rest: Any) -> torch.Tensor:
        return self.model.decode(audio_codes=toks).audio_values


class Dac(_Codebooks):
    """DAC with its first codebooks."""

    FAMILY = "Dac"
    REPOSITORY = "descript/dac_16khz"
    NUMBER, KEYWORD = "n_codebooks", "n_quantizers"

    def _strides(self, config: Any) -> list[int]:
        return list(config.downsampling_ratios)


class Mimi(_Codebooks):
    """Mimi with its first codebooks."""

    FAMILY = "Mimi"
    REPOSITORY = "kyutai/mimi"
    NUMBER, KEYWORD = "num_quantizers", "num_quantizers"

    def _strides(self, config: Any) -> list[int]:
        # The convolution after the transformer halves the rate.
        return [*config.upsampling_ratios, 2]
