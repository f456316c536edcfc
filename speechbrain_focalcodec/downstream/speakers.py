"""Embeddings of speakers' voices for synthesis.

In training, the voice of an utterance comes from another utterance of the
speaker: its own embedding would reveal more than the voice.
"""

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from speechbrain_focalcodec.audio.files import resample
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError, abridge
from speechbrain_focalcodec.metrics.speaker import ResemblyzerSimilarity
from speechbrain_focalcodec.metrics.values import is_measurable
from speechbrain_focalcodec.utils.files import atomic_path

__all__ = [
    "SAMPLE_RATE",
    "SpeakerEmbeddings",
    "Utterance",
    "VoiceEmbedder",
    "manifest_utterances",
    "token_utterances",
]

#: Sample rate of the embedder in Hz.
SAMPLE_RATE = 16000

# Seconds between two writes of the file.
SAVE_INTERVAL = 300.0

_FORMAT = "focalcodec-speakers"


class Utterance(NamedTuple):
    """An utterance to embed; `read` returns its waveform [T] at 16 kHz."""

    id: str
    speaker: str | None
    read: Callable[[], torch.Tensor]


class VoiceEmbedder:
    """Embeds voices with Resemblyzer (extra ``speaker``).

    The package includes its weights.
    """

    #: Name of the embedder in files.
    name = "resemblyzer"

    def __init__(self, device: str = "cpu"):
        self._metric = ResemblyzerSimilarity(device)

    @torch.no_grad()
    def __call__(self, sig: torch.Tensor) -> torch.Tensor | None:
        """Embedding [256] of norm 1 of a waveform [T] at 16 kHz.

        None if there is too little speech.
        """
        sig = sig.detach().float().cpu()
        if not is_measurable(sig) or not sig.any():
            return None
        return self._metric.embed(sig)


class SpeakerEmbeddings:
    """Embeddings of utterances, and a choice of references among them.

    `vectors` are float32 [N, D]; zero if there is too little speech. `seed` is
    of the choice. Raises a DataError if ids are not unique.
    """

    def __init__(
        self,
        ids: Sequence[str],
        speakers: Sequence[str | None],
        vectors: torch.Tensor,
        seed: int = 0,
    ):
        repeated = [name for name, n in Counter(ids).items() if n > 1]
        if repeated:
            raise DataError(
                f"several utterances have one id: {abridge(repeated)}; give "
                "their files other names"
            )
        self.ids, self.speakers = list(ids), list(speakers)
        self.vectors = vectors
        self.seed = seed
        self._rows = {name: row for row, name in enumerate(self.ids)}
        spoken = vectors.any(1).tolist()
        self._of_speaker: dict[str, list[int]] = defaultdict(list)
        for row, speaker in enumerate(self.speakers):
            if spoken[row] and speaker is not None:
                self._of_speaker[speaker].append(row)

    @property
    def dim(self) -> int:
        """Size of an embedding."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.ids)

    def reference(self, utt_id: str, epoch: int = 0) -> str:
        """Id of another utterance of the speaker; changes with the epoch.

        It is `utt_id` if the speaker has no other utterance with speech.
        Raises a DataError if the utterance is unknown.
        """
        row = self._rows.get(utt_id)
        if row is None:
            raise DataError(
                f"there is no embedding of {utt_id}'s voice: the embeddings "
                "are of other data; compute them again"
            )
        speaker = self.speakers[row]
        known = [] if speaker is None else self._of_speaker.get(speaker, [])
        others = [other for other in known if other != row]
        if others:
            draw = random.Random(f"{self.seed}/{epoch}/{utt_id}")
            row = draw.choice(others)
        return self.ids[row]

    def __call__(self, utt_ids: Sequence[str], epoch: int = 0) -> torch.Tensor:
        """Embeddings of the utterances' references, float32 [B, D]."""
        rows = [self._rows[self.reference(name, epoch)] for name in utt_ids]
        return self.vectors[rows]

    @classmethod
    def compute(
        cls,
        utterances: Iterable[Utterance],
        embed: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
        path: str | Path | None = None,
        seed: int = 0,
    ) -> "SpeakerEmbeddings":
        """Embed the utterances of all splits, or read embeddings from a file.

        `embed` returns the embedding [D] of a waveform [T] at 16 kHz, or
        None; by default a :class:`VoiceEmbedder`. The embeddings in `path`,
        a ``.safetensors`` file, are reused, and new ones are added every
        few minutes. Raises a DataError if no utterance has enough speech,
        ids are not unique, or the file is damaged or of another embedder.
        """
        name = getattr(embed, "name", "other") if embed else VoiceEmbedder.name
        kept: dict[str, torch.Tensor | None] = {}
        if path is not None and Path(path).exists():
            kept.update(_read_vectors(path, name))
        ids: list[str] = []
        speakers: list[str | None] = []
        new, saved = False, time.monotonic()
        for utt_id, speaker, read in utterances:
            ids.append(utt_id)
            speakers.append(speaker)
            if utt_id in kept:
                continue
            embed = embed or VoiceEmbedder()
            kept[utt_id] = embed(read())
            new = True
            if path is not None and time.monotonic() - saved > SAVE_INTERVAL:
                _write_vectors(path, name, kept)
                saved = time.monotonic()
        vectors = _stack([kept[utt_id] for utt_id in ids])
        if not vectors.any():
            raise DataError(
                f"none of {len(ids)} utterances has enough speech to embed "
                "its voice"
            )
        if path is not None and new:
            _write_vectors(path, name, kept)
        return cls(ids, speakers, vectors, seed)


def _stack(embeddings: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Embeddings [N, D]; zero for None."""
    size = next((len(vector) for vector in embeddings if vector is not None), 0)
    silent = torch.zeros(size)
    rows = [silent if vector is None else vector for vector in embeddings]
    return torch.stack(rows) if rows else torch.zeros(0, 0)


def _write_vectors(
    path: str | Path, embedder: str, kept: dict[str, torch.Tensor | None]
) -> None:
    metadata = {
        "format": _FORMAT,
        "embedder": embedder,
        "ids": json.dumps(list(kept)),
    }
    vectors = _stack(list(kept.values()))
    with atomic_path(path) as temporary:
        save_file({"vectors": vectors}, temporary, metadata)


def _read_vectors(path: str | Path, embedder: str) -> dict[str, torch.Tensor]:
    """Embeddings of an earlier run by utterance."""
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            origin = [metadata.get("format"), metadata.get("embedder")]
            if origin == [_FORMAT, embedder]:
                vectors = stored.get_tensor("vectors")
                ids = json.loads(metadata["ids"])
                return dict(zip(ids, vectors, strict=True))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it to compute it again"
        ) from error
    raise DataError(
        f"{path}: holds no embeddings of voices by {embedder}; delete it, or "
        "name another file"
    )


def manifest_utterances(
    manifest: str | Path, data_root: str | Path
) -> Iterator[Utterance]:
    """Iterate over the utterances of a manifest; audio is read on demand."""
    dataset = make_dataset(manifest, data_root, SAMPLE_RATE)
    for index, utt_id in enumerate(dataset.data_ids):
        speaker = dataset.data[utt_id].get("spk_id")
        yield Utterance(utt_id, speaker, partial(_read, dataset, index))


def token_utterances(
    folder: str | Path, codec: FocalCodec
) -> Iterator[Utterance]:
    """Iterate over the utterances of a token dataset; decoded on demand.

    Raises a DataError if another codec made the tokens.
    """
    dataset = TokenDataset(
        folder, ["id", "speaker"], fingerprint=codec.fingerprint
    )
    audio = TokenDataset(folder, ["tokens"])
    for index, item in enumerate(dataset):
        read = partial(_decode, audio, index, codec)
        yield Utterance(item["id"], item["speaker"] or None, read)


def _read(dataset: Any, index: int) -> torch.Tensor:
    return dataset[index]["sig"]


@torch.no_grad()
def _decode(dataset: Any, index: int, codec: FocalCodec) -> torch.Tensor:
    device = next(codec.parameters()).device
    toks = dataset[index]["tokens"][None].to(device)
    sig = codec.decode(toks)[0][0].float().cpu()
    return resample(sig, codec.sample_rate_output, SAMPLE_RATE)
