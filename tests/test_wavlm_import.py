"""Weights for the frozen encoder, compared with transformers' WavLM."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WavLMConfig, WavLMForCTC, WavLMModel

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.modules.wavlm import WavLM
from speechbrain_focalcodec.training.wavlm_import import (
    load_encoder,
    wavlm_from_transformers,
)

PARITY = Path(__file__).parent / "parity"
POSITION = "encoder.pos_conv_embed.conv"
# As wavlm-large, but small. The last layer's hidden state comes after a norm
# that the codec leaves out: fewer layers are kept than there are.
LAYERS, KEPT = 4, 2
SIZES = {
    "hidden_dims": (16,) * 7,
    "num_layers": KEPT,
    "dim": 32,
    "ffn_dim": 64,
    "num_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "num_buckets": 32,
    "max_distance": 64,
}


def transformers_model(kind=WavLMModel, **changes):
    """A small model with weights that leave no part without effect."""
    options = {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "feat_extract_norm": "layer",
        "conv_bias": False,
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "num_buckets": 32,
        "max_bucket_distance": 64,
        **changes,
    }
    model = kind(WavLMConfig(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise)
    return model


@pytest.fixture(scope="module")
def published():
    return transformers_model()


@pytest.fixture(scope="module")
def saved(published, tmp_path_factory):
    """The folder that transformers writes."""
    folder = tmp_path_factory.mktemp("wavlm")
    published.save_pretrained(folder)
    return folder


def imported(weights, **changes):
    encoder = WavLM(**{**SIZES, **changes}).eval()
    encoder.load_state_dict(
        wavlm_from_transformers(weights, encoder_layers(encoder))
    )
    return encoder


def encoder_layers(encoder):
    return len(encoder.encoder.layers)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def assert_same(encoder, model, samples, batch=1):
    sig = noise(batch, samples)
    with torch.inference_mode():
        hidden = model(sig, output_hidden_states=True).hidden_states
        feats = encoder(sig)
    expected = hidden[encoder_layers(encoder)]
    assert feats.shape == expected.shape
    assert (feats - expected).abs().max() < 1e-4


# Against transformers


# 400 samples are one frame; 40000 reach beyond the largest distance.
@pytest.mark.parametrize("samples", [400, 719, 720, 5000, 16000, 40001])
def test_features_are_the_hidden_state_of_the_last_kept_layer(
    published, samples
):
    encoder = imported(published.state_dict())
    assert_same(encoder, published, samples, batch=2)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_any_number_of_layers_can_be_kept(published, num_layers):
    encoder = imported(published.state_dict(), num_layers=num_layers)
    assert_same(encoder, published, 8000)


def test_the_comparison_can_tell_layers_apart(published):
    sig = noise(1, 8000)
    with torch.inference_mode():
        hidden = published(sig, output_hidden_states=True).hidden_states
        feats = imported(published.state_dict())(sig)
    for i in range(LAYERS + 1):
        if i != KEPT:
            assert (feats - hidden[i]).abs().max() > 0.1


def test_an_even_and_an_odd_position_kernel(published):
    model = transformers_model(num_conv_pos_embeddings=15)
    encoder = imported(model.state_dict(), conv_pos=15)
    assert_same(encoder, model, 8000)


def old_spelling(weights):
    """The weight norm's names before PyTorch's parametrizations."""
    spelled = dict(weights)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        spelled[f"{POSITION}.{old}"] = spelled.pop(
            f"{POSITION}.parametrizations.weight.{new}"
        )
    return spelled


def folded(weights):
    """Without weight norm."""
    conv = nn.utils.weight_norm(nn.Conv1d(32, 32, 16, groups=4), dim=2)
    spelled = old_spelling(weights)
    with torch.no_grad():
        conv.weight_g.copy_(spelled.pop(f"{POSITION}.weight_g"))
        conv.weight_v.copy_(spelled.pop(f"{POSITION}.weight_v"))
    nn.utils.remove_weight_norm(conv)
    return spelled | {f"{POSITION}.weight": conv.weight.detach()}


@pytest.mark.parametrize("spelling", [old_spelling, folded])
def test_all_spellings_of_the_weight_norm(published, spelling):
    weights = spelling(published.state_dict())
    expected = wavlm_from_transformers(published.state_dict(), KEPT)
    given = wavlm_from_transformers(weights, KEPT)
    assert given.keys() == expected.keys()
    for name, value in given.items():
        assert torch.allclose(value, expected[name], atol=1e-6)


def test_the_weights_given_are_left_as_they_are(published):
    weights = old_spelling(published.state_dict())
    before = dict(weights)
    wavlm_from_transformers(weights, KEPT)
    assert weights.keys() == before.keys()
    assert all(weights[name] is before[name] for name in before)


def test_a_model_with_a_head_has_a_prefix():
    model = transformers_model(WavLMForCTC)
    assert "lm_head.weight" in model.state_dict()
    assert_same(imported(model.state_dict()), model.wavlm, 8000)


def test_half_precision_weights_are_folded_in_single_precision(published):
    """A norm may be larger than what float16 can hold."""
    weights = {k: v.clone() for k, v in published.state_dict().items()}
    for name in weights:
        if name.endswith("original1"):
            weights[name] *= 50_000
            assert weights[name].abs().max() < 65504 < weights[name].norm()
    expected = wavlm_from_transformers(weights, KEPT)
    half = {name: value.half() for name, value in weights.items()}
    given = wavlm_from_transformers(half, KEPT)
    for name, value in given.items():
        assert torch.allclose(value.float(), expected[name], atol=2e-3)


# Errors of the weights


@pytest.mark.parametrize("num_layers", [LAYERS + 1, 24])
def test_too_few_layers_are_an_error(published, num_layers):
    with pytest.raises(CheckpointError) as caught:
        wavlm_from_transformers(published.state_dict(), num_layers)
    message = str(caught.value)
    assert f"no encoder.layers.{num_layers - 1}" in message
    assert f"{num_layers} layers are needed" in message


@pytest.mark.parametrize("name", ["weight_g", "weight_v"])
def test_half_of_a_weight_norm_is_an_error(published, name):
    weights = old_spelling(published.state_dict())
    del weights[f"{POSITION}.{name}"]
    with pytest.raises(CheckpointError, match="weight_g and .*weight_v that"):
        wavlm_from_transformers(weights, KEPT)


@pytest.mark.parametrize("shape", [(32, 1, 1), (1, 1, 15), (1,), ()])
def test_a_weight_norm_along_another_axis_is_an_error(published, shape):
    weights = old_spelling(published.state_dict())
    weights[f"{POSITION}.weight_g"] = torch.ones(shape)
    with pytest.raises(CheckpointError, match="that fit each other"):
        wavlm_from_transformers(weights, KEPT)


def test_a_missing_projection_is_an_error(published):
    weights = dict(published.state_dict())
    name = "encoder.layers.1.attention.v_proj.bias"
    del weights[name]
    with pytest.raises(CheckpointError, match=f"missing weight: {name}"):
        wavlm_from_transformers(weights, KEPT)


# Into a codec


@pytest.fixture
def codec():
    return FocalCodec.from_pretrained(PARITY / "offline_50hz")


def codec_with(part, **options):
    data = json.loads((PARITY / "offline_50hz" / "config.json").read_text())
    data[part] |= options
    return FocalCodec.from_config(data)


def test_a_folder_that_transformers_saved(codec, published, saved):
    before = {k: v.clone() for k, v in codec.decoder.state_dict().items()}
    load_encoder(codec, saved)
    assert_same(codec.encoder, published, 8000)
    for name, value in codec.decoder.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("case", ["offline_25hz", "v001_50hz"])
def test_the_encoder_of_another_codec(codec, case):
    other = FocalCodec.from_pretrained(PARITY / case)
    sig = noise(1, 8000)
    assert not torch.equal(codec.encoder(sig), other.encoder(sig))
    load_encoder(codec, PARITY / case)
    assert torch.equal(codec.encoder(sig), other.encoder(sig))


def test_a_causal_student_starts_from_the_offline_encoder(codec):
    student = FocalCodec.from_pretrained(PARITY / "causal_50hz")
    load_encoder(student, PARITY / "offline_50hz")
    expected = codec.encoder.state_dict()
    for name, value in student.encoder.state_dict().items():
        assert torch.equal(value, expected[name])


def refused(error, codec, source):
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    with pytest.raises(error) as caught:
        load_encoder(codec, source)
    for name, value in codec.state_dict().items():
        assert torch.equal(value, before[name])  # nothing was half loaded
    assert str(source) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "size"), [("dim", 64), ("ffn_dim", 128), ("num_buckets", 64)]
)
def test_an_encoder_of_other_sizes_is_an_error(saved, key, size):
    data = json.loads((PARITY / "offline_50hz" / "config.json").read_text())
    data["encoder_config"][key] = size
    if key == "dim":
        data["compressor_config"]["input_dim"] = size
        data["decompressor_config"]["output_dim"] = size
        data["decoder_config"]["input_dim"] = size
    message = refused(CheckpointError, FocalCodec.from_config(data), saved)
    assert "wrong shape: " in message and "configuration needs" in message


def test_an_encoder_with_too_few_layers_is_an_error(saved):
    codec = codec_with("encoder_config", num_layers=LAYERS + 1)
    with pytest.raises(CheckpointError, match="5 layers are needed"):
        load_encoder(codec, saved)
    deep = codec_with("encoder_config", num_layers=3)
    message = refused(CheckpointError, deep, PARITY / "offline_25hz")
    assert "missing weight: encoder.layers.2" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_stable_layer_norm", False),
        ("hidden_act", "relu"),
        ("feat_extract_activation", "relu"),
        ("layer_norm_eps", 1e-3),
        ("conv_stride", [5, 2, 2, 2, 2, 2, 1]),
        ("max_bucket_distance", 800),
    ],
)
def test_what_no_shape_shows_is_compared(codec, saved, tmp_path, key, value):
    folder = tmp_path / "wavlm"
    shutil.copytree(saved, folder)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {key: value}))
    message = refused(ConfigError, codec, folder)
    assert f"{key} is {value!r}, the codec needs" in message


@pytest.mark.parametrize(
    ("key", "value"), [("causal", True), ("max_distance", 80)]
)
def test_what_no_shape_of_a_codec_shows_is_compared(
    codec, tmp_path, key, value
):
    """A student has the shapes of its teacher, but is none."""
    shutil.copytree(PARITY / "offline_50hz", tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    data = json.loads(path.read_text())
    data["encoder_config"][key] = value
    path.chmod(0o644)
    path.write_text(json.dumps(data))
    message = refused(ConfigError, codec, tmp_path / "codec")
    assert f"its encoder has {key} {value!r}, the codec needs" in message


def test_wavlm_base_is_refused(codec, tmp_path):
    """It has one group norm and norms after its layers."""
    model = transformers_model(
        feat_extract_norm="group", do_stable_layer_norm=False
    )
    model.save_pretrained(tmp_path)
    assert "do_stable_layer_norm" in refused(ConfigError, codec, tmp_path)


def test_a_codec_without_wavlm_is_told_so(saved):
    codec = FocalCodec.from_config(
        {
            "encoder_name": "LogMel",
            "compressor_config": {"input_dim": 80, "hidden_dims": [8, 8, 8]},
            "decompressor_config": {"output_dim": 80, "hidden_dims": [8, 8, 8]},
            "decoder_config": {"input_dim": 80, "num_layers": 1, "dim": 8},
        }
    )
    message = refused(ConfigError, codec, saved)
    assert "the codec's encoder is a LogMel" in message
    message = refused(CheckpointError, codec, PARITY / "offline_50hz")
    assert "unexpected weight: encoder." in message


def test_a_weight_that_is_not_finite_is_an_error(codec, saved, tmp_path):
    folder = tmp_path / "wavlm"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    name = f"{POSITION}.parametrizations.weight.original1"
    weights[name] = torch.zeros_like(weights[name])  # has no direction
    save_file(weights, folder / "model.safetensors")
    message = refused(CheckpointError, codec, folder)
    assert "NaN or infinite weight: encoder.positional_embedding" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "no valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": "wavlm", "model_type": "x"}', "repeated key"),
        ("[]", "expected a JSON object"),
        ('{"model_type": "hubert"}', "model_type: unknown key"),
        ('{"model_type": ["wavlm"]}', "model_type: unknown key"),
    ],
)
def test_a_source_of_another_kind_is_an_error(
    codec, saved, tmp_path, text, problem
):
    folder = tmp_path / "other"
    shutil.copytree(saved, folder)
    (folder / "config.json").write_text(text)
    assert problem in refused(ConfigError, codec, folder)


def test_a_source_that_is_not_there_is_an_error(codec, tmp_path):
    with pytest.raises(ConfigError, match="config.json: not found"):
        load_encoder(codec, tmp_path)
    with pytest.raises(CheckpointError, match="'no-such-model'"):
        load_encoder(codec, "no-such-model")
