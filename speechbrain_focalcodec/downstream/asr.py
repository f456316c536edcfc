"""Speech recognition with CTC."""

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

# Maximum share of training utterances that are too short for their text.
MAX_TOO_SHORT = 0.05


class CTCDecoder:
    """Decodes log-probabilities [B, N, V] to one text per utterance.

    The blank follows the tokenizer's pieces. Decoding is greedy with
    `beam_size` 1, else SpeechBrain's beam search.
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
        # The beam search truncates to frames and the greedy search rounds:
        # a rounding error must not cost a frame.
        relative = (lengths + 0.25) / log_probs.shape[1]
        if self.search is None:
            labels = ctc_greedy_decode(log_probs, relative, self.blank)
            return [self.tokenizer.decode(pieces) for pieces in labels]
        beams = self.search(log_probs, relative)
        return [normalise(beam[0].text.replace("▁", " ")) for beam in beams]


class ASRBrain(TaskBrain):
    """Trains a network and an output layer with CTC.

    Its modules are ``front_end``, ``network`` and ``output`` (scores of the
    tokenizer's pieces, then of the blank). Its hyperparameters are
    ``tokenizer`` (a
    :class:`~speechbrain_focalcodec.downstream.text.TextTokenizer`) and
    ``beam_size`` of the test; validation decodes greedily. The best
    checkpoint has the lowest word error rate in validation.
    """

    @functools.cached_property
    def decoders(self) -> dict[sb.Stage, CTCDecoder]:
        tokenizer = self.hparams.tokenizer
        return {
            sb.Stage.VALID: CTCDecoder(tokenizer),
            sb.Stage.TEST: CTCDecoder(tokenizer, self.hparams.beam_size),
        }

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        hparams["tokenizer"] = tokenizer = learn_pieces(hparams)
        return network_and_output(hparams, tokenizer.size + 1)

    def check_data(self, train_set: Any) -> None:
        encode = self.hparams.tokenizer.encode
        pairs = [
            (seconds, encode(text))
            for seconds, text in column_of(dict(vars(self.hparams)), "text")
            if text
        ]
        check_alignable(pairs, self.front_end.rate, self.hparams.tokenizer_kind)

    def config(self) -> dict[str, Any]:
        return {
            "task": "asr",
            "network": options_of(self.hparams.network),
            "num_pieces": self.hparams.tokenizer.size,
            "beam_size": self.hparams.beam_size,
        }

    def items(self) -> dict[str, tuple[str, Any]]:
        return asr_items(self.hparams.tokenizer)

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        x, lengths = self.inputs(batch)
        x = self.modules.output(self.modules.network(x, lengths))
        return {"log_probs": x.float().log_softmax(-1), "lengths": lengths}

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
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
            texts = self.decoders[stage](log_probs, lengths)
            self.words.append(
                batch.id,
                [text.split() for text in texts],
                [text.split() for text in batch.text],
            )
            self.characters.append(
                batch.id, [*map(list, texts)], [*map(list, batch.text)]
            )
        return loss

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.stage = stage
        self.words, self.characters = ErrorRateStats(), ErrorRateStats()

    def stage_stats(self) -> dict[str, float]:
        """Word and character error rates in percent, except in training."""
        if self.stage == sb.Stage.TRAIN:
            return {}
        return {
            "wer": self.words.summarize("error_rate"),
            "cer": self.characters.summarize("error_rate"),
        }

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        # The loss only breaks ties. It is unbounded, so it is clipped.
        return self.stage_stats()["wer"] + min(loss, 1e3) * 1e-6

    def on_stage_end(self, stage, stage_loss, epoch=None):
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
    """Labels and normalised text; `items` of `task_dataset`."""

    def labels(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer.encode(text), dtype=torch.int64)

    return {"labels": ("text", labels), "text": ("text", normalise)}


def frames_needed(labels: Sequence[int]) -> int:
    """Minimum number of frames that CTC needs for labels.

    CTC puts a blank between two equal labels.
    """
    labels = list(labels)
    repeats = sum(a == b for a, b in zip(labels, labels[1:], strict=False))
    return len(labels) + repeats


def check_alignable(
    pairs: Sequence[tuple[float, Sequence[int]]], rate: float, kind: str
) -> None:
    """Raise a DataError if too many utterances are too short for their labels.

    `pairs` are durations in seconds and labels; `rate` is in frames per second.
    Up to 5 % may be too short.
    """
    short = sum(
        seconds * rate < frames_needed(labels) for seconds, labels in pairs
    )
    if short > MAX_TOO_SHORT * len(pairs):
        raise DataError(
            f"at {rate:g} frames per second, {short} of {len(pairs)} training "
            f"utterances have fewer frames than labels (tokenizer: {kind}), "
            "which CTC cannot align: use longer pieces, such as "
            "--tokenizer_kind=unigram --tokenizer_size=500 or more, or a "
            "codec with more tokens per second"
        )
