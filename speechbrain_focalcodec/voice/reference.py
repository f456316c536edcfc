"""Voice conversion with the nearest frames of a target speaker.

A reference holds feature frames of the target speaker's speech: quantized ones,
or the encoder's continuous ones. To convert other speech, each of its quantized
feature frames is replaced by the mean of the `k` nearest frames (by cosine) of
the reference, and the result is decoded. No training is needed. Frames belong
to one model; references of other models are refused.

The search is exact and runs in blocks, so its memory depends neither on the
reference nor on the speech. Large references stay on disk.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from speechbrain_focalcodec.audio.gate import check_sig
from speechbrain_focalcodec.errors import VoiceError
from speechbrain_focalcodec.long_audio import engine
from speechbrain_focalcodec.long_audio.spool import Spool
from speechbrain_focalcodec.long_audio.windows import CONTEXT, WINDOW
from speechbrain_focalcodec.modules.masking import check_lengths, length_mask
from speechbrain_focalcodec.stages import Convert, Stages
from speechbrain_focalcodec.voice.file import (
    MAX_FRAMES,
    Facts,
    StoredFrames,
    read_voice,
    write_voice,
)
from speechbrain_focalcodec.voice.search import nearest

__all__ = ["IN_MEMORY", "VoiceReference"]

# Bytes; frames of larger references stay on disk. 21 minutes at full size.
IN_MEMORY = 256 * 2**20

# Values in a block of frames, or of similarities.
BLOCK = 2**22
# Frames per search.
QUERIES = 4096


class VoiceReference:
    """Feature frames of a target speaker: the matching set.

    Create one with :meth:`from_sigs`, from files with
    :meth:`PretrainedFocalCodec.prepare_reference`, or :meth:`load` one.

    Arguments
    ---------
    frames : torch.Tensor or StoredFrames
        Features [M, C], quantized or continuous.
    facts : Facts
        The model that they belong to, their rate and the speaker's name.

    Raises
    ------
    VoiceError
        If there are no frames, too many, or one is not finite.
    ValueError
        If they are not floats [M, C].

    Example
    -------
    >>> from speechbrain_focalcodec import FocalCodec
    >>> codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    >>> sigs = [torch.randn(16000), torch.randn(8000)]
    >>> reference = VoiceReference.from_sigs(codec, sigs, "noise")
    >>> reference
    VoiceReference('noise', 1.5 s, of focalcodec_mini_50hz)
    >>> codec.convert_voice(torch.randn(1, 5000), reference).shape
    torch.Size([1, 5000])
    """

    def __init__(
        self, frames: torch.Tensor | StoredFrames, facts: Facts
    ) -> None:
        if isinstance(frames, torch.Tensor):
            if frames.ndim != 2 or not frames.is_floating_point():
                raise ValueError(
                    "frames must be floats [M, C], got "
                    f"{frames.dtype} {list(frames.shape)}"
                )
            frames = frames.detach().float()
        self.facts = facts
        self.num_frames, self.dim = frames.shape
        if not 1 <= self.num_frames <= MAX_FRAMES or self.dim < 1:
            raise VoiceError(
                f"a reference needs 1..{MAX_FRAMES} frames, got "
                f"{list(frames.shape)}"
            )
        self._frames = frames
        norms = torch.cat([part.norm(dim=-1) for _, part in self._blocks()])
        # Also refuses frames whose squares overflow.
        if not bool(norms.isfinite().all()):
            raise VoiceError(
                "frames are NaN, infinite or absurdly large; prepare the "
                "reference again"
            )
        # The cosine with a frame of zeros is 0.
        self._scale = torch.where(norms > 0, 1 / norms, 0.0)

    def __repr__(self) -> str:
        return (
            f"VoiceReference({self.facts.name!r}, {self.seconds:.1f} s, of "
            f"{self.facts.model})"
        )

    @classmethod
    def from_sigs(
        cls,
        codec: Stages,
        sigs: Iterable[torch.Tensor],
        name: str = "",
        *,
        continuous: bool = False,
        window: float | None = WINDOW,
        context: float = CONTEXT,
        batch_size: int = 1,
    ) -> "VoiceReference":
        """Create a reference from waveforms.

        Arguments
        ---------
        codec : FocalCodec
            The model.
        sigs : iterable of torch.Tensor
            Speech of the target speaker, each [T] at the codec's
            `sample_rate_input`; may be a generator.
        name : str
            Name of the speaker.
        continuous : bool
            Whether to use the encoder's features, as the demo of the published
            package does, in place of quantized features.
        window, context, batch_size
            See :meth:`FocalCodec.encode_stream`.

        Returns
        -------
        VoiceReference
            In memory, or in a temporary file if larger than `IN_MEMORY`.

        Raises
        ------
        AudioError
            If a waveform is empty or not finite.
        VoiceError
            If there are none.
        FocalCodecError
            If the folder for temporary files cannot hold the frames.
        """

        def read_with(encode: Callable[..., Any]) -> Iterator[Any]:
            for i, sig in enumerate(sigs):
                check_sig(sig, f"sigs[{i}]", ndim=1)
                yield encode(
                    codec,
                    lambda start, stop, sig=sig: sig[start:stop],
                    len(sig),
                    window,
                    context,
                    batch_size,
                )

        if not continuous:
            toks = read_with(engine.encode_stream)
            return cls.from_toks(
                codec, toks, name, window=window, batch_size=batch_size
            )
        sigs = list(sigs)
        num = sum(engine.num_frames(codec, len(sig)) for sig in sigs)
        feats = chain.from_iterable(read_with(engine.feats_stream))
        return cls.from_feats(codec, feats, name, num_frames=num)

    @classmethod
    def from_feats(
        cls,
        codec: Stages,
        feats: Iterable[torch.Tensor],
        name: str = "",
        *,
        num_frames: int | None = None,
    ) -> "VoiceReference":
        """Create a reference from features of the target speaker's speech.

        The features may come from another model with a similar encoder: the
        published demo converts with a streaming model and takes the reference
        from the offline 50 Hz model.

        Arguments
        ---------
        codec : FocalCodec
            The model that decodes.
        feats : iterable of torch.Tensor
            Features, each [N, C], continuous (`sig_to_feats`) or quantized.
        name : str
            Name of the speaker; unprintable characters are replaced.
        num_frames : int, optional
            Number of frames in all. If None, all of them are collected in
            memory first.

        Returns
        -------
        VoiceReference
            See :meth:`from_sigs`.

        Raises
        ------
        VoiceError
            If there are none, or the model's features have another size.
        FocalCodecError
            If the folder for temporary files cannot hold the frames.
        """
        if num_frames is None:
            feats = list(feats)
            num_frames = sum(len(part) for part in feats)
        if num_frames == 0:
            raise VoiceError(
                "there is no reference speech; give at least one recording"
            )
        dim = codec.config.decoder_config.input_dim

        def checked() -> Iterator[torch.Tensor]:
            for part in feats:
                if part.ndim != 2 or part.shape[1] != dim:
                    raise VoiceError(
                        f"feats must be [N, {dim}] for {codec.name}, got "
                        f"{list(part.shape)}"
                    )
                yield part.detach()

        hop = codec.output_hop_length // codec.decoder.hop_length
        facts = Facts(
            fingerprint=codec.fingerprint,
            model=codec.name,
            frame_rate=codec.token_rate * hop,
            name="".join(c if c.isprintable() else "?" for c in name)[:200],
        )
        return cls(_gather(checked(), num_frames), facts)

    @classmethod
    def from_toks(
        cls,
        codec: Stages,
        toks: Iterable[torch.Tensor],
        name: str = "",
        *,
        window: float | None = WINDOW,
        batch_size: int = 1,
    ) -> "VoiceReference":
        """Create a reference from tokens of the target speaker's speech.

        Arguments
        ---------
        codec : FocalCodec
            The model that made them.
        toks : iterable of torch.Tensor
            Tokens of each recording, int64 [N].
        name : str
            Name of the speaker; unprintable characters are replaced.
        window, batch_size
            See :meth:`FocalCodec.decode_stream`.

        Returns
        -------
        VoiceReference
            See :meth:`from_sigs`.

        Raises
        ------
        TokenError
            If a token does not exist.
        VoiceError, FocalCodecError
            See :meth:`from_feats`.
        """
        device = codec.device
        # All tokens first, to know the number of frames.
        all_toks = list(toks)
        for one in all_toks:
            codec.toks_to_codes(one[None].to(device))  # checks them
        hop = codec.output_hop_length // codec.decoder.hop_length
        num = sum(len(one) for one in all_toks) * hop
        parts = (
            part
            for one in all_toks
            for part in engine.qfeats_stream(codec, one, window, batch_size)
        )
        return cls.from_feats(codec, parts, name, num_frames=num)

    @classmethod
    def load(cls, path: str | Path) -> "VoiceReference":
        """Load a prepared reference; executes nothing.

        All of it is read once and checked. Above `IN_MEMORY` the frames stay in
        the file, which is kept open: it may be replaced, but must not be
        changed in place.

        Arguments
        ---------
        path : str or Path
            A file of :meth:`save`.

        Returns
        -------
        VoiceReference
            On the CPU.

        Raises
        ------
        VoiceError
            If the file is missing, damaged or of another kind or version.
        """
        frames, facts = read_voice(path)
        stored = _is_large(frames.shape)
        try:
            return cls(
                frames if stored else frames.read(0, frames.shape[0]), facts
            )
        except VoiceError as error:
            if str(path) in str(error):
                raise
            raise VoiceError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically.

        Arguments
        ---------
        path : str or Path
            The file to write, with suffix ``.safetensors``. An hour at full
            size is 0.74 GB.

        Raises
        ------
        VoiceError
            If the suffix is another.
        """
        write_voice(
            path,
            (part.cpu() for _, part in self._blocks()),
            (self.num_frames, self.dim),
            self.facts,
        )

    def to(self, device: str | torch.device) -> "VoiceReference":
        """Move all frames into the memory of a device; returns the reference.

        For GPUs, and for streams, which search for every chunk.
        """
        device = torch.empty(0, device=device).device
        if self.in_memory and self._scale.device == device:
            return self
        frames = torch.empty(self.num_frames, self.dim, device=device)
        for start, part in self._blocks():
            frames[start : start + len(part)] = part
        return VoiceReference(frames, self.facts)

    # Facts

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model that the frames belong to."""
        return self.facts.fingerprint

    @property
    def seconds(self) -> float:
        """Length of the reference speech (s)."""
        return self.num_frames / self.facts.frame_rate

    @property
    def in_memory(self) -> bool:
        """Whether the frames are in memory, not on disk."""
        return isinstance(self._frames, torch.Tensor)

    # Matching

    def converter(self, codec: Stages, k: int = 4) -> Convert:
        """:meth:`match` with `k` frames, as `convert` of
        :meth:`FocalCodec.decode`.

        Raises VoiceError if the reference belongs to another model or has fewer
        than `k` frames; ValueError if `k` is no positive integer.
        """
        self._check_k(k)
        self._check_codec(codec)

        def convert(
            feats: torch.Tensor, lengths: torch.Tensor | None = None
        ) -> torch.Tensor:
            return self.match(feats, k, lengths)

        return convert

    @torch.no_grad()
    def match(
        self,
        qfeats: torch.Tensor,
        k: int = 4,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Replace each frame by the mean of the `k` nearest frames.

        Nearest by cosine; of equally near frames the first ones. Computed in
        float32, also under autocast, on the device of `qfeats`.

        Arguments
        ---------
        qfeats : torch.Tensor
            Quantized features [B, T, C] of the reference's model.
        k : int
            Number of frames to average.
        lengths : torch.Tensor, optional
            Number of frames, int64 [B].

        Returns
        -------
        torch.Tensor
            Like `qfeats`; 0 beyond each length. Without gradients.

        Raises
        ------
        VoiceError
            If the reference has fewer than `k` frames.
        ValueError
            If a shape is wrong, or a frame is not finite.
        """
        self._check_k(k)
        if qfeats.ndim != 3 or qfeats.shape[2] != self.dim:
            raise ValueError(
                f"qfeats must be [B, T, {self.dim}], got {list(qfeats.shape)}"
            )
        valid = torch.ones_like(qfeats[..., 0], dtype=torch.bool)
        if lengths is not None:
            lengths = check_lengths(lengths, qfeats, "lengths")
            valid = length_mask(lengths, qfeats.shape[1])
        query = qfeats[valid].float()
        if not bool(query.isfinite().all()):
            raise ValueError("qfeats has NaN or infinite frames")
        scale = self._scale.to(query.device)
        with torch.autocast(qfeats.device.type, enabled=False):
            for part in query.split(QUERIES):
                # In place: each part is searched before it is replaced.
                blocks = self._blocks(len(part))
                places = nearest(part, blocks, scale, k)
                part.copy_(self._mean_of(places))
        out = torch.zeros_like(qfeats)
        out[valid] = query.to(out.dtype)
        return out

    def _mean_of(self, places: torch.Tensor) -> torch.Tensor:
        """Means [N, C] of frames with indices [N, k], one column at a time."""
        total: Any = 0.0
        for column in places.T:
            total = total + self._rows(column)
        return total / places.shape[1]

    def _part(self, start: int, stop: int) -> torch.Tensor:
        if isinstance(self._frames, StoredFrames):
            return self._frames.read(start, stop)
        return self._frames[start:stop]

    def _rows(self, places: torch.Tensor) -> torch.Tensor:
        """Frames with some indices, on the indices' device."""
        if isinstance(self._frames, torch.Tensor):
            rows = self._frames[places.to(self._frames.device)]
            return rows.to(places.device)
        wanted, inverse = places.cpu().unique(return_inverse=True)
        rows = torch.cat([self._part(i, i + 1) for i in wanted.tolist()])
        return rows[inverse].to(places.device)

    def _blocks(self, queries: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """Index of the first frame, and frames, of each block."""
        size = max(1, BLOCK // max(self.dim, queries))
        for start in range(0, self.num_frames, size):
            stop = min(start + size, self.num_frames)
            yield start, self._part(start, stop)

    def _check_k(self, k: Any) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be an integer of at least 1, got {k!r}")
        if k > self.num_frames:
            raise VoiceError(
                f"the reference {self.facts.name!r} has {self.num_frames} "
                f"frames ({self.seconds:.2f} s), too few for k={k}; give more "
                "speech or a smaller k"
            )

    def _check_codec(self, codec: Stages) -> None:
        """Raise VoiceError unless this model made the frames."""
        fingerprint = codec.fingerprint
        if fingerprint != self.fingerprint:
            raise VoiceError(
                f"the reference {self.facts.name!r} belongs to another model "
                f"({self.facts.model}, fingerprint {self.fingerprint[:12]}) "
                f"than {codec.name} ({fingerprint[:12]}); prepare it with "
                "this one"
            )


def _is_large(shape: tuple[int, int]) -> bool:
    return 4 * shape[0] * shape[1] > IN_MEMORY


def _gather(
    parts: Iterator[torch.Tensor], num: int
) -> torch.Tensor | StoredFrames:
    """Collect `num` frames in memory or in a temporary file."""
    spool = frames = None
    done = 0
    for part in parts:
        part = part.float()
        shape = (num, part.shape[1])
        if _is_large(shape):
            spool = Spool([num]) if spool is None else spool
            spool.append(part)
            continue
        frames = part.new_empty(shape) if frames is None else frames
        frames[done : done + len(part)] = part
        done += len(part)
    if spool is None:
        assert frames is not None
        return frames
    return StoredFrames(partial(spool.read, 0), shape, spool.close)
