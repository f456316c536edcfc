"""Copies of utterances at other speeds."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.speeds import add_speeds
from speechbrain_focalcodec.errors import ConfigError, DataError


@pytest.fixture
def manifest(tmp_path):
    """A second of 400 Hz, once with a speaker and once without."""
    sig = np.sin(2 * np.pi * 400 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "tone.wav", 0.5 * sig, 16000)
    entry = {
        "wav": "{data_root}/tone.wav",
        "num_samples": 16000,
        "sample_rate": 16000,
        "duration": 1.0,
        "text": "GO",
    }
    path = tmp_path / "train.json"
    write_manifest(path, {"a": {**entry, "spk_id": "Ann"}, "b": entry})
    return path


def test_copies_are_speakers_of_their_own(manifest):
    add_speeds(manifest, [0.8, 1.25])
    found = read_manifest(manifest)
    assert list(found) == ["a", "a@0.8", "a@1.25", "b", "b@0.8", "b@1.25"]
    assert found["a"]["spk_id"] == "Ann" and found["a"]["duration"] == 1.0
    assert found["a@0.8"]["spk_id"] == "Ann@0.8"
    assert found["a@0.8"]["duration"] == 1.25
    assert found["a@1.25"]["text"] == "GO"
    assert "spk_id" not in found["b@0.8"]


@pytest.mark.parametrize(("speed", "length"), [(0.8, 20000), (1.25, 12800)])
def test_pitch_and_length_follow_the_speed(manifest, speed, length):
    add_speeds(manifest, [speed])
    dataset = make_dataset(manifest, manifest.parent, 16000)
    sig = dataset[dataset.data_ids.index(f"a@{speed:g}")]["sig"]
    assert sig.shape == (length,)
    inner = sig[1000:-1000]
    spectrum = torch.fft.rfft(inner * torch.hann_window(len(inner))).abs()
    found = spectrum.argmax() * 16000 / len(inner)
    assert found == pytest.approx(400 * speed, abs=2)


@pytest.mark.parametrize("speeds", [[1.0], [0.4], [2.5], [0.9, 0.9]])
def test_speeds_that_make_no_sense_are_refused(manifest, speeds):
    before = manifest.read_bytes()
    with pytest.raises(ConfigError, match="speeds"):
        add_speeds(manifest, speeds)
    assert manifest.read_bytes() == before


def test_copies_of_copies_are_refused(manifest):
    add_speeds(manifest, [0.9])
    with pytest.raises(DataError, match=r"a@0\.9"):
        add_speeds(manifest, [0.9])
