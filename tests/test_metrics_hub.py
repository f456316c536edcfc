"""Metrics by models of the hub, with tiny ones in its layout."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import EntryNotFoundError
from metric_samples import NOTHING, SPEECH, noisy, same
from safetensors.torch import load_file, save_file
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForXVector,
)

from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.metrics.base import Sample
from speechbrain_focalcodec.metrics.utmos import Utmos
from speechbrain_focalcodec.metrics.utmos_model import Utmos22
from speechbrain_focalcodec.metrics.wavlm_speaker import WavLMSimilarity

TINY = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "conv_dim": [8] * 7},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}


@pytest.fixture
def repository(monkeypatch):
    """Serves local folders as repositories; tells what was asked for."""
    folders, asked = {}, []

    def download(name, file, revision=None):
        asked.append((name, file, revision))
        path = folders[name] / file
        if not path.is_file():
            raise EntryNotFoundError(file)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folders, asked


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    torch.manual_seed(0)
    config = WavLMConfig(
        **TINY,
        **{"tdnn_dim": [16, 16, 16, 16, 24], "xvector_output_dim": 8},
        **{"use_weighted_layer_sum": True, "num_buckets": 32},
    )
    path = tmp_path_factory.mktemp("wavlm")
    WavLMForXVector(config).save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    return path


# WavLM


@pytest.mark.parametrize("size", ["base", "large"])
def test_wavlm_similarity_is_that_of_transformers(wavlm, size):
    metric = WavLMSimilarity(size, wavlm)
    model = WavLMForXVector.from_pretrained(wavlm).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(wavlm)
    rows = metric([same(), noisy()])
    embeddings = []
    for sample in (same(), noisy()):
        inputs = extractor(
            sample.output.numpy(), sampling_rate=16000, return_tensors="pt"
        )
        with torch.no_grad():
            embeddings.append(model(**inputs).embeddings)
    expected = float(torch.cosine_similarity(*embeddings))
    field = f"wavlm_{size}_sv"
    assert metric.name == f"wavlm-{size}-sv"
    assert metric.converts
    assert rows[0] == {field: pytest.approx(1)}
    assert rows[1] == {field: pytest.approx(expected, abs=1e-5)}
    assert rows[1][field] < 0.9999


@pytest.mark.parametrize(
    "sig", [*NOTHING.values(), torch.zeros(16000), SPEECH[:5000]]
)
def test_wavlm_has_no_figure_for_what_is_too_little(wavlm, sig):
    metric = WavLMSimilarity("base", wavlm)
    assert metric([Sample("a", SPEECH, sig)]) == [{"wavlm_base_sv": None}]


def test_wavlm_is_fetched_with_its_revision(wavlm, repository, tmp_path):
    folders, asked = repository
    # As the hub has it: a checkpoint of PyTorch, weight norm as it was.
    weights = load_file(wavlm / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in weights.items()
    }
    assert set(old) != set(weights)
    torch.save(old, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((wavlm / name).read_text())
    folders["owner/wavlm"] = tmp_path
    metric = WavLMSimilarity("base", "owner/wavlm@abc")
    assert metric([noisy()]) == WavLMSimilarity("base", wavlm)([noisy()])
    assert asked[0] == ("owner/wavlm", "config.json", "abc")
    assert [file for _, file, _ in asked[1:]] == [
        "model.safetensors",
        "pytorch_model.bin",
        "preprocessor_config.json",
    ]


def test_the_model_of_the_paper_is_the_default(wavlm, repository):
    folders, _ = repository
    folders["microsoft/wavlm-base-sv"] = wavlm
    assert WavLMSimilarity().name == "wavlm-base-sv"


def test_a_missing_file_of_a_repository_is_named(repository, tmp_path):
    repository[0]["owner/empty"] = tmp_path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match="model.safetensors or pytorch_model.bin: not in"
    ):
        WavLMSimilarity("base", "owner/empty")


def test_only_sizes_of_a_configuration_are_used(wavlm, tmp_path):
    config = json.loads((wavlm / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModel": "evil.Model"},
        "attn_implementation": "owner/kernel",
        "_attn_implementation": "owner/kernel",
        "_attn_implementation_internal": "owner/kernel",
        "quantization_config": {"quant_method": "evil"},
        "dtype": "evil",
        "output_hidden_states": "evil",
    }
    copy_folder(wavlm, tmp_path, config)
    metric = WavLMSimilarity("base", tmp_path)
    assert metric([noisy()]) == WavLMSimilarity("base", wavlm)([noisy()])
    assert metric.model.config._attn_implementation == "eager"


def copy_folder(source, target, config):
    (target / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "preprocessor_config.json"):
        (target / name).write_bytes((source / name).read_bytes())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "llama"}, ConfigError, "model_type is 'llama'"),
        ({"hidden_size": "many"}, ConfigError, "config.json: "),
        (
            {"hidden_size": 1 << 20, "intermediate_size": 1 << 20},
            CheckpointError,
            "do not fit its configuration",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    wavlm, tmp_path, change, error, message
):
    config = json.loads((wavlm / "config.json").read_text())
    copy_folder(wavlm, tmp_path, config | change)
    with pytest.raises(error, match=message):
        WavLMSimilarity("base", tmp_path)


def test_weights_are_not_unpickled(wavlm, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((wavlm / name).read_text())
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Attack(tmp_path / "marker")}, path)
    for content in (
        path.read_bytes(),
        pickle.dumps(Attack(tmp_path / "marker"), protocol=2),
        b"junk",
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="without executing code"):
            WavLMSimilarity("base", tmp_path)
    assert not (tmp_path / "marker").exists()


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_an_invalid_source_is_named():
    with pytest.raises(CheckpointError, match="neither a folder nor a hub"):
        WavLMSimilarity("base", "not/a/repository")


@pytest.mark.parametrize("make", [WavLMSimilarity, Utmos])
def test_the_extra_is_named(make, monkeypatch, wavlm, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ImportError, match=r"needs transformers.*\[paper\]"):
        make(source=tmp_path)


# UTMOS


@pytest.fixture(scope="module")
def utmos(tmp_path_factory):
    """A tiny UTMOS of this package."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **TINY, mask_time_prob=0.0, attn_implementation="eager"
    )
    sizes = {
        "judges.weight": torch.zeros(300, 4),
        "domains.weight": torch.zeros(3, 4),
        "lstm.weight_hh_l0": torch.zeros(32, 8),
        "head.0.weight": torch.zeros(12, 16),
    }
    model = Utmos22(Wav2Vec2Model(config), sizes).eval()
    torch.nn.init.normal_(model.head[3].weight)
    path = tmp_path_factory.mktemp("utmos")
    config.save_pretrained(path)
    save_file(model.state_dict(), path / "model.safetensors")
    return path, model


# This package's names, and those of the published checkpoint, by hand.
PUBLISHED = {
    "encoder.feature_extractor.conv_layers.0.layer_norm.": (
        "feature_extractors.0.ssl_model.feature_extractor.conv_layers.0.2."
    ),
    "encoder.feature_projection.layer_norm.": (
        "feature_extractors.0.ssl_model.layer_norm."
    ),
    "encoder.feature_projection.projection.": (
        "feature_extractors.0.ssl_model.post_extract_proj."
    ),
    "encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
        "feature_extractors.0.ssl_model.encoder.pos_conv.0.weight_g"
    ),
    "encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
        "feature_extractors.0.ssl_model.encoder.pos_conv.0.weight_v"
    ),
    "encoder.encoder.pos_conv_embed.conv.bias": (
        "feature_extractors.0.ssl_model.encoder.pos_conv.0.bias"
    ),
    "encoder.encoder.layer_norm.": (
        "feature_extractors.0.ssl_model.encoder.layer_norm."
    ),
    "domains.": "feature_extractors.1.embedding.",
    "judges.": "output_layers.0.judge_embedding.",
    "lstm.": "output_layers.0.decoder_rnn.",
    "head.": "output_layers.1.net.",
}
for i in range(7):
    PUBLISHED[f"encoder.feature_extractor.conv_layers.{i}.conv."] = (
        f"feature_extractors.0.ssl_model.feature_extractor.conv_layers.{i}.0."
    )
for i in range(2):
    for ours, theirs in {
        "attention.": "self_attn.",
        "layer_norm.": "self_attn_layer_norm.",
        "feed_forward.intermediate_dense.": "fc1.",
        "feed_forward.output_dense.": "fc2.",
        "final_layer_norm.": "final_layer_norm.",
    }.items():
        PUBLISHED[f"encoder.encoder.layers.{i}.{ours}"] = (
            f"feature_extractors.0.ssl_model.encoder.layers.{i}.{theirs}"
        )


def published_names(weights):
    renamed = {}
    for name, value in weights.items():
        [prefix] = [start for start in PUBLISHED if name.startswith(start)]
        renamed[name.replace(prefix, PUBLISHED[prefix], 1)] = value
    return renamed


def test_utmos_is_the_mean_over_frames_for_one_listener(utmos):
    path, model = utmos
    rows = Utmos(path)([noisy(), same()])
    sig = noisy().output[None]
    with torch.no_grad():
        feats = model.encoder(sig).last_hidden_state[0]
        listener = [model.domains.weight[0], model.judges.weight[288]]
        inputs = torch.cat(
            [feats, torch.cat(listener).expand(len(feats), -1)], 1
        )
        scores = model.head(model.lstm(inputs[None])[0]).flatten()
    assert rows[0] == {"utmos": pytest.approx(float(2 * scores.mean() + 3))}
    assert rows[0] != rows[1]
    assert Utmos.converts


@pytest.mark.parametrize("sig", [*NOTHING.values(), SPEECH[:399]])
def test_utmos_of_short_signals_is_none(utmos, sig):
    metric = Utmos(utmos[0])
    assert metric([Sample("a", SPEECH, sig)]) == [{"utmos": None}]


class Copying:
    """Calls a function when it is unpickled."""

    def __init__(self, source, target):
        self.paths = str(source), str(target)

    def __reduce__(self):
        return shutil.copyfile, self.paths


class Training:
    """An object in a checkpoint of Lightning."""

    def __init__(self, steps):
        self.steps = steps

    def __reduce__(self):
        return Training, (self.steps,), {"more": {"a": 1}}


def test_the_published_checkpoint_is_read_without_its_objects(
    utmos, tmp_path, repository
):
    path, model = utmos
    marker = tmp_path / "marker"
    weights = published_names(model.state_dict())
    weights["feature_extractors.0.ssl_model.mask_emb"] = torch.zeros(16)
    torch.save(
        {
            "state_dict": weights,
            "hyper_parameters": {"cfg": Training(3)},
            "callbacks": {Training: [Copying(path / "config.json", marker)]},
        },
        tmp_path / "model.ckpt",
    )
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    repository[0]["mosnets/utmos"] = tmp_path
    assert Utmos()([noisy()]) == Utmos(path)([noisy()])
    assert Utmos(tmp_path / "model.ckpt")([noisy()]) == Utmos(path)([noisy()])
    assert not marker.exists()


def test_unsafe_checkpoints_are_refused(tmp_path):
    path, marker = tmp_path / "model.ckpt", tmp_path / "marker"
    torch.save({"state_dict": {"a": Attack(marker)}}, path)
    pickled = pickle.dumps(Attack(marker), protocol=2)
    for content in (path.read_bytes(), pickled, b"junk", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="without executing code"):
            Utmos(path)
    assert not marker.exists()


def test_the_weights_of_something_else_are_named(tmp_path, utmos):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no UTMOS"):
        Utmos(path)
    weights = utmos[1].state_dict()
    save_file(weights | {"judges.weight": torch.zeros(9, 4)}, path)
    with pytest.raises(CheckpointError, match="row 288 is missing"):
        Utmos(path)
    # Without a config.json: the sizes of the base model.
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        Utmos(path)
