"""What a codec is to an evaluation: the adapter to write for another one."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Output", "System"]


@dataclass(frozen=True, eq=False)
class Output:
    """What a codec made of one utterance.

    Arguments
    ---------
    sig : torch.Tensor
        Waveform [T] at the codec's `sample_rate_output`, on the CPU, as long
        as the input to the sample where the rates are the same.
    bits : float, optional
        What was coded, in bits; ``None`` where nothing is.
    seconds : float
        Time that it took; of a batch, this utterance's share.
    toks : torch.Tensor, optional
        Tokens, int64 [N], of a codec with one codebook.
    """

    sig: torch.Tensor
    bits: float | None
    seconds: float
    toks: torch.Tensor | None = None


class System(ABC):
    """A codec under evaluation.

    An adapter for another codec gives `encode`, `decode` and `bits`. One that
    works on batches overrides `resynthesize` instead; one that converts voices
    has `prepare_reference` and `convert` too.

    Attributes
    ----------
    name : str
        What it is called in tables and files.
    sample_rate_input, sample_rate_output : int
        Of the waveforms that it takes and gives (Hz).
    codebook_size : int, optional
        Where it has one codebook, whose use is then counted.
    fingerprint : str
        Tells apart what gives other output under the same name.
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
            Whatever `decode` takes.
        """

    @abstractmethod
    def decode(self, codes: Any) -> torch.Tensor:
        """Decode one utterance.

        Arguments
        ---------
        codes : object
            From `encode`.

        Returns
        -------
        torch.Tensor
            Waveform [T'] at `sample_rate_output`, aligned with the input;
            what is too long is cut, what is too short is filled with zeros.
        """

    @abstractmethod
    def bits(self, codes: Any) -> float | None:
        """Size of what was coded, in bits.

        Arguments
        ---------
        codes : object
            From `encode`.

        Returns
        -------
        float or None
            The number of bits; ``None`` for what is not coded at all.
        """

    def resynthesize(self, sigs: Sequence[torch.Tensor]) -> list[Output]:
        """Take utterances through the codec.

        Arguments
        ---------
        sigs : sequence of torch.Tensor
            Waveforms [T] at `sample_rate_input`.

        Returns
        -------
        list of Output
            One for each.
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
        """Whether it converts voices."""
        return type(self).convert is not System.convert

    def prepare_reference(self, sigs: Sequence[torch.Tensor]) -> Any:
        """Make a target speaker's reference, if it converts voices.

        Arguments
        ---------
        sigs : sequence of torch.Tensor
            Speech of the target speaker, each [T] at `sample_rate_input`.

        Returns
        -------
        object
            Whatever `convert` takes.
        """
        raise NotImplementedError(f"{self.name} does not convert voices")

    def convert(self, sig: torch.Tensor, reference: Any) -> Output:
        """Say what an utterance says in another speaker's voice.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [T] at `sample_rate_input`.
        reference : object
            The target speaker, from `prepare_reference`.

        Returns
        -------
        Output
            What came of it, as long as `sig`.
        """
        raise NotImplementedError(f"{self.name} does not convert voices")
