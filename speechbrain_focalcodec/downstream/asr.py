"""Speech recognition with CTC, from tokens or from what they are made of."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.decoders.ctc import CTCBeamSearcher, ctc_greedy_decode
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_focalcodec.downstream.brain import TaskBrain
from speechbrain_focalcodec.downstream.learnt import (
    column_of,
    learn_pieces,
    network_and_output,
)
from speechbrain_focalcodec.downstream.task_config import options_of
from speechbrain_focalcodec.downstream.text import TextTokenizer, normalise
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = ["ASRBrain", "CTCDecoder", "check_alignable", "frames_needed"]

# Share of the training data that may be too short for its text.
MAX_TOO_SHORT = 0.05


class CTCDecoder:
    """Texts from a recogniser's log probabilities.

    Arguments
    ---------
    tokenizer : TextTokenizer
        Its pieces; the blank comes after them.
    beam_size : int
        1 is greedy; more is SpeechBrain's beam search.

    Example
    -------
    >>> tokenizer = TextTokenizer.train(["GO ON"], "char")
    >>> pieces = tokenizer.encode("GO")
    >>> log_probs = torch.full((1, 5, tokenizer.size + 1), -9.0)
    >>> blank = tokenizer.size
    >>> for frame, piece in enumerate([*pieces, pieces[-1], blank]):
    ...     log_probs[0, frame, piece] = 0.0
    >>> CTCDecoder(tokenizer)(log_probs, torch.tensor([5]))
    ['GO']
    """

    def __init__(self, tokenizer: TextTokenizer, beam_size: int = 1):
        self.tokenizer = tokenizer
        self.blank = tokenizer.size
        self.search: CTCBeamSearcher | None = None
        if beam_size > 1:
            self.search = CTCBeamSearcher(
                blank_index=self.blank,
                vocab_list=[*tokenizer.pieces, ""],
                space_token="▁",
                beam_size=beam_size,
            )

    def __call__(
        self, log_probs: torch.Tensor, lengths: torch.Tensor
    ) -> list[str]:
        # The beam search cuts what is after the point, so a rounding error
        # would cost a frame; the greedy one rounds.
        relative = (lengths + 0.25) / log_probs.shape[1]
        if self.search is None:
            found = ctc_greedy_decode(log_probs, relative, self.blank)
            return [self.tokenizer.decode(pieces) for pieces in found]
        beams = self.search(log_probs, relative)
        return [normalise(beam[0].text.replace("▁", " ")) for beam in beams]


class ASRBrain(TaskBrain):
    """Trains a network and an output layer with CTC.

    Modules: ``front_end``, ``network`` and ``output``, which gives log
    probabilities of the tokenizer's pieces and, after them, of the blank.
    Hyperparameters: ``tokenizer`` (a
    :class:`~speechbrain_focalcodec.downstream.text.TextTokenizer`) and
    ``beam_size`` of the test; validation is greedy. Checkpoints are ranked by
    the validation's word error rate.
    """

    @functools.cached_property
    def decoders(self) -> dict[sb.Stage, CTCDecoder]:
        """How each stage decodes."""
        tokenizer = self.hparams.tokenizer
        return {
            sb.Stage.VALID: CTCDecoder(tokenizer),
            sb.Stage.TEST: CTCDecoder(tokenizer, self.hparams.beam_size),
        }

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        """Learn the pieces, and make the network and its output.

        Arguments
        ---------
        hparams : dict
            With ``front_end``, ``network`` (called with ``input_dim``) and
            what :func:`~speechbrain_focalcodec.downstream.learnt.learn_pieces`
            takes. Receives ``tokenizer``.

        Returns
        -------
        dict
            ``network`` and ``output``.
        """
        hparams["tokenizer"] = tokenizer = learn_pieces(hparams)
        return network_and_output(hparams, tokenizer.size + 1)

    def check_data(self, train_set: Any) -> None:
        """Refuse labels that do not fit into the frames.

        Arguments
        ---------
        train_set : DynamicItemDataset or TokenDataset
            The data.

        Raises
        ------
        DataError
            See :func:`check_alignable`.
        """
        encode = self.hparams.tokenizer.encode
        pairs = [
            (seconds, encode(text))
            for seconds, text in column_of(dict(vars(self.hparams)), "text")
            if text
        ]
        check_alignable(pairs, self.front_end.rate, self.hparams.tokenizer_kind)

    def config(self) -> dict[str, Any]:
        """What the recogniser is made of.

        Returns
        -------
        dict
            As `ASRConfig` has it.
        """
        return {
            "task": "asr",
            "network": options_of(self.hparams.network),
            "num_pieces": self.hparams.tokenizer.size,
            "beam_size": self.hparams.beam_size,
        }

    def items(self) -> dict[str, tuple[str, Any]]:
        """Labels and text.

        Returns
        -------
        dict
            As :func:`~speechbrain_focalcodec.downstream.data.task_dataset`
            takes it.
        """
        return asr_items(self.hparams.tokenizer)

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        """Log probabilities.

        Arguments
        ---------
        batch : PaddedBatch
            The batch.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        dict
            ``log_probs`` [B, N, pieces + 1] and ``lengths`` [B].
        """
        x, lengths = self.inputs(batch)
        x = self.modules.output(self.modules.network(x, lengths))
        return {"log_probs": x.float().log_softmax(-1), "lengths": lengths}

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        """CTC, and error rates where nothing is trained.

        Arguments
        ---------
        predictions : dict
            Of :meth:`compute_forward`.
        batch : PaddedBatch
            The batch, with ``labels`` and ``text``.
        stage : sb.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            Scalar: the mean over utterances.
        """
        log_probs, lengths = predictions["log_probs"], predictions["lengths"]
        labels, label_lens = batch.labels
        loss = ctc_loss(
            log_probs,
            labels,
            lengths / log_probs.shape[1],
            label_lens,
            blank_index=self.hparams.tokenizer.size,
        )
        if stage != sb.Stage.TRAIN:
            found = self.decoders[stage](log_probs, lengths)
            words = [text.split() for text in found]
            wanted = [text.split() for text in batch.text]
            self.words.append(batch.id, words, wanted)
            self.letters.append(
                batch.id, [*map(list, found)], [*map(list, batch.text)]
            )
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Begin to count errors.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        epoch : int, optional
            The epoch.
        """
        super().on_stage_start(stage, epoch)
        self.stage = stage
        self.words, self.letters = ErrorRateStats(), ErrorRateStats()

    def stage_stats(self) -> dict[str, float]:
        """Word and character error rates, in percent.

        Returns
        -------
        dict
            ``wer`` and ``cer``; nothing in training.
        """
        if self.stage == sb.Stage.TRAIN:
            return {}
        return {
            "wer": self.words.summarize("error_rate"),
            "cer": self.letters.summarize("error_rate"),
        }

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        """The word error rate.

        Arguments
        ---------
        loss : float
            Mean loss of validation.
        epoch : int
            The epoch.

        Returns
        -------
        float
            The lower the better; the loss counts among equals.
        """
        # A loss has no bound; it must not weigh as much as an error.
        return self.stage_stats()["wer"] + min(loss, 1e3) * 1e-6

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, and after the test write what was recognised.

        Arguments
        ---------
        stage : sb.Stage
            Training, validation or test.
        stage_loss : float
            Mean loss of the stage.
        epoch : int, optional
            The epoch.
        """
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            run_on_main(self._write_alignments)

    def _write_alignments(self) -> None:
        path = Path(self.hparams.output_folder) / "wer_test.txt"
        with (
            atomic_path(path) as temporary,
            open(temporary, "w", encoding="utf-8") as stream,
        ):
            self.words.write_stats(stream)


def asr_items(tokenizer: TextTokenizer) -> dict[str, tuple[str, Any]]:
    """What recognition needs of an utterance.

    Arguments
    ---------
    tokenizer : TextTokenizer
        Gives the labels.

    Returns
    -------
    dict
        Of :func:`~speechbrain_focalcodec.downstream.data.task_dataset`.

    Example
    -------
    >>> sorted(asr_items(TextTokenizer.train(["GO"], "char")))
    ['labels', 'text']
    """

    def labels(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer.encode(text), dtype=torch.int64)

    return {"labels": ("text", labels), "text": ("text", normalise)}


def frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames that CTC can align with labels.

    Arguments
    ---------
    labels : sequence of int
        An utterance's labels.

    Returns
    -------
    int
        One a label, and one for a blank between two that are the same.

    Example
    -------
    >>> frames_needed([3, 3, 1])
    4
    """
    labels = list(labels)
    repeats = sum(a == b for a, b in zip(labels, labels[1:], strict=False))
    return len(labels) + repeats


def check_alignable(
    pairs: Sequence[tuple[float, Sequence[int]]], rate: float, kind: str
) -> None:
    """Refuse labels that are more than the frames they must fit in.

    Arguments
    ---------
    pairs : sequence of (float, sequence of int)
        Seconds and labels of the training data.
    rate : float
        Frames a second.
    kind : str
        What the labels are, for the message.

    Raises
    ------
    DataError
        If more than 5 % of the utterances are too short for their labels.

    Example
    -------
    >>> check_alignable([(1.0, [1] * 10)], 50.0, "char")
    >>> check_alignable([(1.0, [1] * 10)], 12.5, "char")
    Traceback (most recent call last):
    ...
    speechbrain_focalcodec.errors.DataError: at 12.5 a second, 1 of 1 ...
    """
    short = sum(
        seconds * rate < frames_needed(labels) for seconds, labels in pairs
    )
    if short > MAX_TOO_SHORT * len(pairs):
        raise DataError(
            f"at {rate:g} a second, {short} of {len(pairs)} training "
            f"utterances have fewer frames than labels (tokenizer: {kind}), "
            "which CTC cannot align: take longer pieces, such as "
            "--tokenizer_kind=unigram --tokenizer_size=500 or more, or a "
            "codec with more tokens a second"
        )
