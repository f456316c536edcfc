"""Trains speech synthesis: a language model of tokens, text and voices."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_focalcodec.downstream.asr import asr_items
from speechbrain_focalcodec.downstream.brain import TaskBrain
from speechbrain_focalcodec.downstream.data import split_file
from speechbrain_focalcodec.downstream.front_ends import TokenFrontEnd
from speechbrain_focalcodec.downstream.generation import Generation, generate
from speechbrain_focalcodec.downstream.learnt import column_of, learn_pieces
from speechbrain_focalcodec.downstream.speakers import (
    SpeakerEmbeddings,
    Utterance,
    manifest_utterances,
    token_utterances,
)
from speechbrain_focalcodec.downstream.task_config import options_of
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.training.distributed import run_long_on_main
from speechbrain_focalcodec.training.samples import Samples
from speechbrain_focalcodec.utils.lengths import data_and_lengths

__all__ = ["TTSBrain", "embed_voices", "fit_pace"]


class TTSBrain(TaskBrain):
    """Trains a language model of tokens with cross-entropy.

    Its modules are ``front_end`` (a
    :class:`~speechbrain_focalcodec.downstream.front_ends.TokenFrontEnd`, which
    encodes waveforms and is not trained) and ``model`` (a
    :class:`~speechbrain_focalcodec.downstream.language_model.TokenLanguageModel`).
    Its hyperparameters are those of :meth:`build`, ``sampling`` (a
    :class:`~speechbrain_focalcodec.downstream.generation.Sampling`),
    ``max_seconds`` (maximum length of a generated utterance) and optionally

    - ``best_by``: ``loss`` (default) keeps the checkpoint with the lowest
      validation loss, ``last`` keeps the last one. Several tokens fit each
      sound, so the loss can rise while intelligibility still improves;
    - ``row_length``: length of a packed row, at least that of the longest
      sequence;
    - ``num_samples``: number of utterances to synthesise in each validation.
    """

    def __init__(
        self,
        modules=None,
        opt_class=None,
        hparams=None,
        run_opts=None,
        checkpointer=None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self._samples = Samples(hparams.get("num_samples", 0))

    @classmethod
    def build(cls, hparams: dict[str, Any]) -> dict[str, torch.nn.Module]:
        """Train the tokenizer, embed the voices and make the model.

        `hparams` has ``front_end``, ``language_model`` (called with
        ``num_pieces``, ``codebook_size`` and ``speaker_dim``), the keys of
        `learn_pieces` and, for a model with voices, ``voices`` and
        ``voices_file``. Adds ``tokenizer`` and ``speakers``
        (`SpeakerEmbeddings` or None).
        """
        front_end = hparams["front_end"]
        if not isinstance(front_end, TokenFrontEnd):
            raise ConfigError(
                "input: synthesis makes tokens, not "
                f"{hparams.get('input', type(front_end).__name__)}: set "
                "input: tokens"
            )
        hparams["tokenizer"] = tokenizer = learn_pieces(hparams)
        speakers = embed_voices(hparams) if hparams.get("voices") else None
        hparams["speakers"] = speakers
        model = hparams["language_model"](
            num_pieces=tokenizer.size,
            codebook_size=front_end.codebook_size,
            speaker_dim=None if speakers is None else speakers.dim,
        )
        if model.aligned:
            model.pace.copy_(fit_pace(hparams, front_end.rate))
        return {"model": model}

    def config(self) -> dict[str, Any]:
        speakers = self.hparams.speakers
        return {
            "task": "tts",
            "language_model": options_of(self.hparams.language_model),
            "num_pieces": self.hparams.tokenizer.size,
            "speaker_dim": None if speakers is None else speakers.dim,
            "sampling": dataclasses.asdict(self.hparams.sampling),
            "max_seconds": float(self.hparams.max_seconds),
        }

    @property
    def model(self) -> Any:
        """The language model without its DistributedDataParallel wrapper."""
        module = self.modules.model
        return getattr(module, "module", module)

    def items(self) -> dict[str, tuple[str, Any]]:
        return asr_items(self.hparams.tokenizer)

    def voices(self, batch: Any, stage: sb.Stage) -> torch.Tensor | None:
        """Reference embeddings [B, D], drawn anew in each training epoch."""
        speakers = getattr(self.hparams, "speakers", None)
        if speakers is None:
            return None
        training = stage == sb.Stage.TRAIN
        epoch = self.hparams.epoch_counter.current if training else 0
        return speakers(batch.id, epoch).to(self.device)

    def compute_forward(self, batch: Any, stage: sb.Stage) -> dict[str, Any]:
        toks, tok_lengths = self.prepared(batch)
        text, text_lengths = data_and_lengths(batch.to(self.device).labels)
        voices = self.voices(batch, stage)
        if stage != sb.Stage.TRAIN and self._samples.wanted:
            self._keep_samples(
                batch.id, (text, text_lengths, voices), toks, tok_lengths
            )
        scores, targets = self.modules.model(
            text,
            text_lengths,
            toks,
            tok_lengths,
            voices,
            getattr(self.hparams, "row_length", None),
        )
        return {"scores": scores, "targets": targets}

    def compute_objectives(
        self, predictions: dict[str, Any], batch: Any, stage: sb.Stage
    ) -> torch.Tensor:
        scores, targets = predictions["scores"], predictions["targets"]
        with torch.no_grad():
            correct = scores.likeliest() == targets
        self.record(token_accuracy=100.0 * correct.float().mean())
        return -scores.log_prob(targets).mean()

    def checkpoint_rank(self, loss: float, epoch: int) -> float:
        best_by = getattr(self.hparams, "best_by", "loss")
        if best_by not in ("loss", "last"):
            raise ConfigError(f"best_by: {best_by!r} is neither loss nor last")
        return loss if best_by == "loss" else -float(epoch)

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self._samples.clear()

    def write_samples(self, name: str) -> None:
        if self.front_end.codec is None:
            return
        folder = self.run_log.folder / "samples" / name
        self._samples.write(
            folder, self.front_end.codec, self.run_log, self.optimizer_step
        )

    def generate(
        self,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        voices: torch.Tensor | None = None,
    ) -> list[Generation]:
        """Generate tokens with the sampling of the hyperparameters.

        `text` is int64 [B, T], `voices` are embeddings [B, D].
        """
        return generate(
            self.model,
            text,
            text_lengths,
            voices,
            max_tokens=math.ceil(
                self.hparams.max_seconds * self.front_end.rate
            ),
            sampling=self.hparams.sampling,
        )

    def _keep_samples(
        self,
        names: list[str],
        prompts: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        toks: torch.Tensor,
        tok_lengths: torch.Tensor,
    ) -> None:
        """Synthesise the first utterances of a batch as samples."""
        codec = self.front_end.codec
        if codec is None or not if_main_process():
            return
        codec.to(self.device)
        count = self._samples.limit
        names = names[:count]
        text, text_lengths, voices = prompts
        if voices is not None:
            voices = voices[:count]
        generations = self.generate(text[:count], text_lengths[:count], voices)
        for i, generation in enumerate(generations):
            if not len(generation.toks):
                # Possible with min_tokens=0.
                continue
            toks_generated = generation.toks[None]
            real = toks[i : i + 1, : int(tok_lengths[i])]
            with torch.no_grad():
                outputs = {
                    "generated": codec.decode(toks_generated),
                    "resynthesis": codec.decode(real),
                }
            self._samples.keep(names[i : i + 1], outputs)


def fit_pace(hparams: dict[str, Any], rate: float) -> torch.Tensor:
    """Fit the number of tokens as a linear function of the number of pieces.

    Returns offset and slope, [2], from the training data at `rate` tokens per
    second.
    """
    counts = [
        (len(hparams["tokenizer"].encode(text)), seconds * rate)
        for seconds, text in column_of(hparams, "text")
        if text
    ]
    pieces, toks = torch.tensor(counts, dtype=torch.float64).T
    ones = torch.ones_like(pieces)
    fit = torch.linalg.lstsq(torch.stack([ones, pieces], 1), toks[:, None])
    return fit.solution[:, 0].float()


def embed_voices(hparams: dict[str, Any]) -> SpeakerEmbeddings:
    """Embed the voices of all splits on the main process.

    The embeddings are stored in ``voices_file``.
    """
    tokens = hparams.get("tokens") or {}

    def utterances_of(split: str) -> Iterator[Utterance]:
        if split in tokens:
            return token_utterances(tokens[split], hparams["codec"])
        manifest = Path(hparams["save_folder"]) / split_file(split)
        return manifest_utterances(manifest, hparams["data_folder"])

    def utterances() -> Iterator[Utterance]:
        # Validation and test may be the same split.
        seen = set()
        for split in ("train", "valid", "test"):
            for utterance in utterances_of(split):
                key = (utterance.id, utterance.speaker)
                if key not in seen:
                    seen.add(key)
                    yield utterance

    def compute() -> SpeakerEmbeddings:
        return SpeakerEmbeddings.compute(
            utterances(), path=hparams["voices_file"], seed=hparams["seed"]
        )

    # Exceeds the usual time limit of collective operations.
    run_long_on_main(compute)
    # Reads the file.
    return compute()
