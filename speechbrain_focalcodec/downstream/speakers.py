"""Embeddings of speakers' voices, computed once an utterance.

A synthesiser learns a voice from another utterance of the same speaker: the
one that it shall say would tell it more than the voice.
"""

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

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

#: Sample rate of what is embedded, in Hz.
SAMPLE_RATE = 16000

# Seconds of work that an interruption may lose.
SAVE_INTERVAL = 300.0

_FORMAT = "focalcodec-speakers"


class Utterance(NamedTuple):
    """An utterance whose voice is wanted.

    Arguments
    ---------
    id : str
        Its id.
    speaker : str or None
        Who speaks; `None` is a speaker of whom nothing else is known.
    read : callable
        Gives its waveform [T] at 16 kHz.
    """

    id: str
    speaker: str | None
    read: Callable[[], torch.Tensor]


class VoiceEmbedder:
    """Embeds voices with Resemblyzer (extra ``speaker``), 256 numbers each.

    Its weights come with it; nothing is downloaded.

    Arguments
    ---------
    device : str
        Where it runs.

    Example
    -------
    >>> VoiceEmbedder()(torch.zeros(16000)) is None
    True
    """

    #: What files of embeddings name it.
    name = "resemblyzer"

    def __init__(self, device: str = "cpu"):
        self._metric = ResemblyzerSimilarity(device)

    @torch.no_grad()
    def __call__(self, sig: torch.Tensor) -> torch.Tensor | None:
        """Embed a voice.

        Arguments
        ---------
        sig : torch.Tensor
            Waveform [T] at 16 kHz.

        Returns
        -------
        torch.Tensor or None
            Embedding [256] of length 1; `None` where there is too little
            speech.
        """
        sig = sig.detach().float().cpu()
        if not is_measurable(sig) or not sig.any():
            return None
        return self._metric.embed(sig)


class SpeakerEmbeddings:
    """The voices of utterances, and which of them stands for which.

    Arguments
    ---------
    ids : sequence of str
        The utterances.
    speakers : sequence of str or None
        Who speaks in each.
    vectors : torch.Tensor
        Embeddings, float32 [N, D]; zeros where there is too little speech.
    seed : int
        Of the choice of references.

    Raises
    ------
    DataError
        If an utterance comes twice.

    Example
    -------
    >>> voices = SpeakerEmbeddings(
    ...     ["a", "b", "c"], ["Ann", "Ann", "Bob"], torch.eye(3)
    ... )
    >>> voices(["a", "b", "c"])
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 0., 1.]])
    """

    def __init__(
        self,
        ids: Sequence[str],
        speakers: Sequence[str | None],
        vectors: torch.Tensor,
        seed: int = 0,
    ):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(
                f"several utterances have one id: {abridge(twice)}; give "
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
        """The utterance whose voice stands for that of another.

        Arguments
        ---------
        utt_id : str
            An utterance.
        epoch : int
            Another epoch may choose another one.

        Returns
        -------
        str
            An utterance of the same speaker; itself where there is no other
            with speech.

        Raises
        ------
        DataError
            If the utterance is unknown.
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
        """Embeddings of references.

        Arguments
        ---------
        utt_ids : sequence of str
            Utterances.
        epoch : int
            The epoch.

        Returns
        -------
        torch.Tensor
            float32 [B, D].
        """
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
        """Embed utterances, once.

        Arguments
        ---------
        utterances : iterable of Utterance
            What :func:`manifest_utterances` and :func:`token_utterances`
            give, of all splits.
        embed : callable, optional
            Waveform [T] at 16 kHz to embedding [D], or `None` where there is
            too little speech; a :class:`VoiceEmbedder` by default. Its `name`
            tells embedders apart.
        path : str or Path, optional
            A ``.safetensors`` file: what it holds is not computed again, and
            what is computed is kept in it, every few minutes too.
        seed : int
            Of the choice of references.

        Returns
        -------
        SpeakerEmbeddings
            The embeddings of these utterances.

        Raises
        ------
        DataError
            If no utterance has enough speech, one comes twice, or the file
            is damaged or made by another embedder.

        Example
        -------
        >>> def utterance(name):
        ...     return Utterance(name, "Ann", lambda: torch.ones(16000))
        >>> def embed(sig):
        ...     return sig[:5]
        >>> path = getfixture("tmp_path") / "voices.safetensors"
        >>> voices = SpeakerEmbeddings.compute(
        ...     [utterance("a"), utterance("b")], embed, path
        ... )
        >>> voices.dim, path.is_file()
        (5, True)
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


def _stack(found: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Embeddings [N, D], zeros for what has none."""
    size = next((len(vector) for vector in found if vector is not None), 0)
    silent = torch.zeros(size)
    rows = [silent if vector is None else vector for vector in found]
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
    """What an earlier run has kept, by utterance."""
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            found = [metadata.get("format"), metadata.get("embedder")]
            if found == [_FORMAT, embedder]:
                vectors = stored.get_tensor("vectors")
                ids = json.loads(metadata["ids"])
                return dict(zip(ids, vectors, strict=True))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it, and it is made again"
        ) from error
    raise DataError(
        f"{path}: holds no embeddings of voices by {embedder}; delete it, or "
        "name another file"
    )


def manifest_utterances(
    manifest: str | Path, data_root: str | Path
) -> Iterator[Utterance]:
    """The utterances of a manifest.

    Arguments
    ---------
    manifest : str or Path
        A manifest of data preparation; "spk_id" says who speaks.
    data_root : str or Path
        The data folder that its paths are relative to.

    Yields
    ------
    Utterance
        Read when it is asked for.

    Example
    -------
    >>> import numpy, soundfile
    >>> from speechbrain_focalcodec.data.manifest import write_manifest
    >>> tmp = getfixture("tmp_path")
    >>> soundfile.write(tmp / "a.wav", numpy.zeros(8000), 8000)
    >>> entry = {"wav": "{data_root}/a.wav", "num_samples": 8000}
    >>> entry |= {"sample_rate": 8000, "spk_id": "Ann"}
    >>> write_manifest(tmp / "train.json", {"a": entry})
    >>> (utterance,) = manifest_utterances(tmp / "train.json", tmp)
    >>> utterance.id, utterance.speaker, utterance.read().shape
    ('a', 'Ann', torch.Size([16000]))
    """
    dataset = make_dataset(manifest, data_root, SAMPLE_RATE)
    for index, utt_id in enumerate(dataset.data_ids):
        speaker = dataset.data[utt_id].get("spk_id")
        yield Utterance(utt_id, speaker, _Read(dataset, index))


def token_utterances(
    folder: str | Path, codec: FocalCodec
) -> Iterator[Utterance]:
    """The utterances of a token dataset, heard through the codec.

    Arguments
    ---------
    folder : str or Path
        What ``focalcodec tokenize`` has made.
    codec : FocalCodec
        The codec that made it.

    Yields
    ------
    Utterance
        Decoded when it is asked for.

    Raises
    ------
    DataError
        If another codec made the tokens.

    Example
    -------
    >>> from make_tokens import make_tokens  # in tests/
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> folder = make_tokens(
    ...     getfixture("tmp_path") / "tokens", fingerprint=codec.fingerprint
    ... )
    >>> utterance = next(token_utterances(folder, codec))
    >>> utterance.id, utterance.speaker, utterance.read().ndim
    ('utt-0000', 'speaker0', 1)
    """
    dataset = TokenDataset(
        folder, ["id", "speaker"], fingerprint=codec.fingerprint
    )
    audio = TokenDataset(folder, ["tokens"])
    for index, item in enumerate(dataset):
        read = _Decode(audio, index, codec)
        yield Utterance(item["id"], item["speaker"] or None, read)


class _Read:
    """Reads an utterance's waveform."""

    def __init__(self, dataset, index: int):
        self.dataset, self.index = dataset, index

    def __call__(self) -> torch.Tensor:
        return self.dataset[self.index]["sig"]


class _Decode(_Read):
    """Decodes an utterance's tokens."""

    def __init__(self, dataset, index: int, codec: FocalCodec):
        super().__init__(dataset, index)
        self.codec = codec

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        device = next(self.codec.parameters()).device
        toks = self.dataset[self.index]["tokens"][None].to(device)
        sig = self.codec.decode(toks)[0][0].float().cpu()
        return resample(sig, self.codec.sample_rate_output, SAMPLE_RATE)
