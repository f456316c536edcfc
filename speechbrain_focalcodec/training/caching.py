"""Training from cached features in place of encoding each batch."""

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

# Options of the data that leave waveforms as they are in the files.
KNOWN_OPTIONS = {"segment_samples", "min_samples", "max_samples"}


def use_feature_cache(
    brain: CodecBrain,
    datasets: Mapping[str, DynamicItemDataset],
    hparams: Mapping[str, Any],
) -> None:
    """Let datasets give cached features; make the caches where missing.

    The segments of ``segment_frames`` are those that are cut without a cache.
    Those of ``segment_samples`` are segments of the whole utterance's features
    then: their frames have seen what is around the segment, and they begin at
    a multiple of the hop. Without a cache, each is encoded alone.

    Arguments
    ---------
    brain : CodecBrain
        Its codec's encoder, or that one's teacher, makes the features. It
        must be frozen.
    datasets : dict
        By split; they give features ("feats") afterwards. Waveforms too, of
        the same segments, to a stage that trains on them, and for validation
        that decodes.
    hparams : dict
        With ``feature_cache`` (the folder; each split gets one in it),
        ``num_workers``, ``seed``, perhaps ``segment_frames``, and for each
        split its options, such as ``train_data_options``.

    Raises
    ------
    ConfigError
        If the stage takes no features, trains its encoder, or changes its
        waveforms.
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
    # The largest last: what does not fit the disk is found out early.
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
