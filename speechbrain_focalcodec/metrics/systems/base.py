"""Base class of codecs in an evaluation."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Output", "System"]


@dataclass(frozen=True, eq=False)
class Output:
    """Output of a codec for one utterance.

    Arguments
    ---------
    sig : torch.Tensor
        Waveform [T] at the codec's `sample_rate_output`, on the CPU, with the
        duration of the input.
    bits : float, optional
        Number of coded bits; None if nothing is coded.
    seconds : float
        Processing time; for a batch, the utterance's share.
    toks : torch.Tensor, optional
        Tokens, int64 [N], of a codec with one codebook.
    """

    sig: torch.Tensor
    bits: float | None
    seconds: float
    toks: torch.Tensor | None = None


class System(ABC):
    """A codec under evaluation.

    An adapter implements `encode`, `decode` and `bits`. To process batches, it
    overrides `resynthesize`. To convert voices, it implements
    `prepare_reference` and `convert`.

    Attributes
    ----------
    name : str
        Name in tables and files.
    sample_rate_input, sample_rate_output : int
        Sample rates of input and output in Hz.
    codebook_size : int, optional
        Size of the codebook, if there is one; its usage is then reported.
    fingerprint : str
        Identity of the codec's weights and settings.
    """

    name: str
    sample_rate_input: int
    sample_rate_output: int
    codebook_size: int | None = None
    fingerprint: str = ""

    @abstractmethod
    def encode(self, sig: torch.Tensor) -> Any:
        """Encode one utterance.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [T] at `sample_rate_input`.

        Returns
        -------
        object
            Input of `decode`.
        """

    @abstractmethod
    def decode(self, codes: Any) -> torch.Tensor:
        """Decode one utterance.

        Arguments
        ---------
        codes : object
            Output of `encode`.

        Returns
        -------
        torch.Tensor
            Waveform [T'] at `sample_rate_output`, aligned with the input. It is
            cut or zero-padded to the input's duration.
        """

    @abstractmethod
    def bits(self, codes: Any) -> float | None:
        """Number of bits of encoded speech.

        Arguments
        ---------
        codes : object
            Output of `encode`.

        Returns
        -------
        float or None
            Number of bits; None if nothing is coded.
        """

    def resynthesize(self, sigs: Sequence[torch.Tensor]) -> list[Output]:
        """Encode and decode utterances.

        Arguments
        ---------
        sigs : sequence of torch.Tensor
            Waveforms [T] at `sample_rate_input`.

        Returns
        -------
        list of Output
            One per utterance.
        """
        outputs = []
        for sig in sigs:
            start = time.perf_counter()
            codes = self.encode(sig)
            decoded = self.decode(codes)
            seconds = time.perf_counter() - start
            length = round(
                len(sig) * self.sample_rate_output / self.sample_rate_input
            )
            decoded = decoded[:length].cpu()
            missing = length - len(decoded)
            decoded = torch.nn.functional.pad(decoded, (0, missing))
            outputs.append(Output(decoded, self.bits(codes), seconds))
        return outputs

    @property
    def converts(self) -> bool:
        """True if the codec converts voices."""
        return type(self).convert is not System.convert

    def prepare_reference(self, sigs: Sequence[torch.Tensor]) -> Any:
        """Make a target speaker's reference, for codecs that convert voices.

        Arguments
        ---------
        sigs : sequence of torch.Tensor
            Speech of the target speaker, each [T] at `sample_rate_input`.

        Returns
        -------
        object
            Argument of `convert`.
        """
        raise NotImplementedError(f"{self.name} does not convert voices")

    def convert(self, sig: torch.Tensor, reference: Any) -> Output:
        """Convert an utterance to another speaker's voice.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [T] at `sample_rate_input`.
        reference : object
            Output of `prepare_reference`.

        Returns
        -------
        Output
            Converted speech with the duration of `sig`.
        """
        raise NotImplementedError(f"{self.name} does not convert voices")
