"""EnCodec, DAC and Mimi under evaluation, with tiny random models."""

import sys
import types

import pytest
import torch
import transformers
from system_checks import check_lengths, kbps

from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.metrics.systems.registry import make_system
from speechbrain_focalcodec.metrics.systems.transformers import (
    Dac,
    Encodec,
    Mimi,
)

TINY = {
    "Encodec": {
        "num_filters": 4,
        "hidden_size": 8,
        "codebook_dim": 8,
        "codebook_size": 16,
        "num_lstm_layers": 1,
        "upsampling_ratios": [4, 2],
        "sampling_rate": 800,
        "target_bandwidths": [0.8, 1.6],
    },
    "Dac": {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "downsampling_ratios": [2, 4],
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
        "sampling_rate": 800,
    },
    "Mimi": {
        "num_filters": 4,
        "hidden_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "codebook_size": 16,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "upsampling_ratios": [4, 2],
        "sampling_rate": 800,
    },
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a tiny model of each family, by its name in specs."""
    root = tmp_path_factory.mktemp("peers")
    for name, sizes in TINY.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**sizes)
        model = getattr(transformers, f"{name}Model")(config)
        model.save_pretrained(root / name.lower())
    return root


# Tokens of the tiny models: 4 bits, 100 a second and codebook (Mimi: 50).
@pytest.mark.parametrize(
    ("family", "setting", "nominal"),
    [
        *(("encodec", 0.8, 0.8), ("encodec", 1.6, 1.6)),
        *(("dac", 1, 0.4), ("dac", 3, 1.2), ("mimi", 1, 0.2), ("mimi", 4, 0.8)),
    ],
)
def test_transformers_keep_lengths_and_bitrate(tiny, family, setting, nominal):
    spec = f"{family}:{tiny / family}@{setting}"
    system = make_system(spec)
    assert system.name == spec
    assert system.sample_rate_input == 800
    outputs = check_lengths(system)
    assert kbps(system, outputs[-1]) == pytest.approx(nominal, rel=0.01)


def test_transformers_decode_as_the_models_do(tiny):
    sig = torch.randn(64)
    for system in (
        Encodec(1.6, tiny / "encodec"),
        Dac(2, tiny / "dac"),
        Mimi(2, tiny / "mimi"),
    ):
        keyword = {"Encodec": "bandwidth", "Dac": "n_quantizers"}.get(
            system.FAMILY, "num_quantizers"
        )
        with torch.no_grad():
            whole = system.model(sig[None, None], **{keyword: system.setting})
        [output] = system.resynthesize([sig])
        expected = whole.audio_values.flatten()[:64]
        torch.testing.assert_close(output.sig[: len(expected)], expected)


def test_transformers_fingerprint_tells_weights_and_settings(tiny):
    first = Dac(1, tiny / "dac").fingerprint
    assert Dac(1, tiny / "dac").fingerprint == first
    assert Dac(2, tiny / "dac").fingerprint != first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("encodec:{}/encodec@3", r"one of \[0.8, 1.6\] kbit/s, not 3"),
        ("dac:{}/dac@4", "1 to 3 codebooks, not 4"),
        ("mimi:{}/mimi@1.5", "1 to 4 codebooks, not 1.5"),
        ("dac:{}/mimi@1", "cannot be loaded as Dac.*it is a mimi"),
        ("mimi:{}/nowhere@1", "neither a folder nor"),
        ("mimi:{}/empty@1", "cannot be loaded as Mimi"),
        ("mimi:{}/mimi", "no codec of this name"),
    ],
)
def test_transformers_refuse(tiny, spec, message):
    (tiny / "empty").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        make_system(spec.format(tiny))


def test_missing_weights_are_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tiny / "dac"
    weights = load_file(source / "model.safetensors")
    lost = sorted(weights)[0]
    del weights[lost]
    config = (source / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    metadata = {"format": "pt"}
    save_file(weights, tmp_path / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match="has no weights for"):
        Dac(1, tmp_path)


def test_transformers_of_a_hub_repository_are_pinned(tiny, monkeypatch):
    asked = []

    def local(cls):
        load = cls.from_pretrained

        def fetch(source, revision, **options):
            asked.append((source, revision))
            # Weights that are not safetensors could be pickles.
            assert cls is transformers.AutoConfig or options["use_safetensors"]
            return load(tiny / "dac", **options)

        monkeypatch.setattr(cls, "from_pretrained", fetch)

    local(transformers.AutoConfig)
    local(transformers.DacModel)
    make_system("dac:2")
    make_system("dac:me/mine@1234abc@2")
    assert asked == [
        *[("descript/dac_16khz", "main")] * 2,
        *[("me/mine", "1234abc")] * 2,
    ]


def test_old_transformers(tiny, monkeypatch):
    old = types.ModuleType("transformers")
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match="has no Dac.*--upgrade"):
        Dac(1, tiny / "dac")
