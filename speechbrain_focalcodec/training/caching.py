"""Training on cached features instead of encoding each batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_focalcodec.audio.files import resampled_length
from speechbrain_focalcodec.data.feature_cache import make_feature_cache
from speechbrain_focalcodec.data.feature_reader import add_features
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.training.codec_brain import CodecBrain

__all__ = ["use_feature_cache"]

# Data options that do not change waveforms.
KNOWN_OPTIONS = {"segment_samples", "min_samples", "max_samples"}


def use_feature_cache(
    brain: CodecBrain,
    datasets: Mapping[str, DynamicItemDataset],
    hparams: Mapping[str, Any],
) -> None:
    """Make datasets read features from a cache; creates missing caches.

    With ``segment_frames`` the segments are the same as without a cache. With
    ``segment_samples`` they are cut from the features of the whole utterance,
    at multiples of the hop length; without a cache each segment is encoded
    alone.

    Arguments
    ---------
    brain : CodecBrain
        Its frozen encoder, or the teacher's, computes the features.
    datasets : dict
        Datasets by split. Afterwards they output "feats", and "sig" of the
        same segment where the stage, or its validation, needs waveforms.
    hparams : dict
        With ``feature_cache`` (a folder with a subfolder for each split),
        ``num_workers``, ``seed``, optionally ``segment_frames``, and the
        options of each split, such as ``train_data_options``.

    Raises
    ------
    ConfigError
        If the stage needs waveforms, trains its encoder or augments.
    DataError
        See :func:`~speechbrain_focalcodec.data.feature_cache\
    .make_feature_cache`.
    """
    codec = brain.teacher_codec if brain.decodes else brain.codec
    if not brain.takes_features:
        raise ConfigError(
            "feature_cache: the stage needs whole waveforms"
            f"{' to quantize' if hparams.get('dequantized') else ''}: set "
            "feature_cache to null"
        )
    if any(weight.requires_grad for weight in codec.encoder.parameters()):
        raise ConfigError(
            "feature_cache: the stage trains the encoder, whose features "
            "change: set feature_cache to null"
        )
    if hparams.get("augmentation") is not None:
        raise ConfigError(
            "augmentation changes the waveforms, which cached features do not "
            "follow: set augmentation or feature_cache to null"
        )
    segment_frames = hparams.get("segment_frames")
    known = KNOWN_OPTIONS - (
        set() if segment_frames is None else {"segment_samples"}
    )
    # Smallest split first.
    for split, dataset in sorted(datasets.items(), key=lambda x: len(x[1])):
        options = hparams[f"{split}_data_options"]
        unknown = {k for k, v in options.items() if v} - known
        if unknown:
            raise ConfigError(
                f"{split}_data_options has {', '.join(sorted(unknown))}, but "
                "cached features are those of the files as they are: leave "
                "that out, or set feature_cache to null"
            )
        cache = make_feature_cache(
            Path(hparams["feature_cache"]) / split,
            codec,
            {utt_id: dataset.data[utt_id] for utt_id in dataset.data_ids},
            hparams["num_workers"],
        )
        segment = segment_frames if split == "train" else None
        if options.get("segment_samples") is not None:
            samples = resampled_length(
                torch.tensor(options["segment_samples"]),
                hparams.get("sample_rate", codec.sample_rate_input),
                codec.sample_rate_input,
            )
            segment = int(codec.encoder.output_lengths(samples))
        add_features(
            dataset,
            cache,
            segment,
            hparams["seed"],
            with_sig=brain.decodes or (split == "valid" and brain.audible),
            hop=brain.codec.decoder.hop_length,
        )
