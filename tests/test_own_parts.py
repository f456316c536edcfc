"""A codec with a part of the user's own: trained, exported, loaded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_focalcodec import FocalCodec, PretrainedFocalCodec
from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.modules.part import (
    Compressor,
    Decoder,
    Decompressor,
)
from speechbrain_focalcodec.training.export import export_runs

ROOT = Path(__file__).parents[1]
OFFLINE = ROOT / "tests" / "parity" / "offline_50hz"
# As docs/architecture.md shows it.
MODULE = """
import torch
from speechbrain_focalcodec.modules.part import (
    Compressor,
    Decoder,
    Decompressor,
)


class FrameDecoder(Decoder):
    def __init__(self, input_dim, hop_length=320):
        super().__init__()
        self.input_dim, self.hop_length = input_dim, hop_length
        self.proj = torch.nn.Linear(input_dim, hop_length)

    def forward(self, feats, lengths=None, state=None):
        return self.proj(feats).flatten(1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the user's module and a model YAML that names it."""
    (tmp_path / "own_decoder.py").write_text(MODULE)
    text = (ROOT / "tests/recipes/models/offline_50hz.yaml").read_text()
    before, rest = text.split("decoder: !new:speechbrain_focalcodec.modules.v")
    decoder = "decoder: !new:own_decoder.FrameDecoder\n    input_dim: 32\n"
    after = "    hop_length: 320\n\ncodec:" + rest.split("\ncodec:")[1]
    (tmp_path / "own.yaml").write_text(before + decoder + after)
    for split in ("train", "valid"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(2):
            sig = 0.1 * np.random.default_rng(i).standard_normal(32000)
            path = tmp_path / "data" / split / f"{split}{i}-a.wav"
            soundfile.write(path, sig, 16000)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_own_decoder_is_trained_exported_and_loaded(own):
    command = [
        *(sys.executable, ROOT / "recipes/Folder/train.py"),
        ROOT / "hparams/train/mini_decoder.yaml",
        *(f"--data_folder={own}/data", f"--output_folder={own}/run"),
        *("--train_splits=[train]", "--valid_splits=[valid]"),
        f"--model=!include:{own}/own.yaml",
        *(f"--encoder_source={OFFLINE}", "--num_valid=0", "--batch_size=2"),
        *("--total_steps=2", "--num_samples=0", "--device=cpu"),
        *("--noprogressbar", "--precision=fp32"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        cwd=own,
        env={"PYTHONPATH": f"{own}:{ROOT}", "PATH": "", "HOME": str(own)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'PretrainedFocalCodec.from_hparams("my_model")' in done.stdout
    codec = export_runs(own / "model", [OFFLINE, own / "run"])
    assert type(codec.decoder).__name__ == "FrameDecoder"
    loaded = PretrainedFocalCodec.from_hparams(own / "model").codec
    assert loaded.fingerprint == codec.fingerprint
    toks, _ = loaded.encode(torch.randn(1, 16000))
    sig, _ = loaded.decode(toks, window=0.3)
    assert sig.shape == (1, 320 * toks.shape[1])
    torch.testing.assert_close(sig, codec.decode(toks)[0])
    # A closed schema: a downloaded file cannot name another class.
    with pytest.raises(ConfigError, match="from_hparams"):
        FocalCodec.from_pretrained(own / "model")


def test_a_name_that_is_no_part_is_refused(own):
    config = FocalCodec.from_pretrained(OFFLINE).config.to_dict()
    data = config | {"decoder_name": "subprocess.Popen", "decoder_config": {}}
    with pytest.raises(ConfigError, match="unknown module subprocess.Popen"):
        FocalCodec.from_config(data)
    parts = FocalCodec.from_pretrained(OFFLINE)
    with pytest.raises(TypeError, match="decoder must be a part"):
        FocalCodec(
            parts.encoder,
            parts.compressor,
            parts.quantizer,
            parts.decompressor,
            torch.nn.Linear(32, 320),
        )


def test_parts_that_do_not_fit_are_refused():
    class Wrong(Decoder):
        input_dim, hop_length = 31, 320

    parts = FocalCodec.from_pretrained(OFFLINE)
    with pytest.raises(ValueError, match="decoder.input_dim is 31"):
        FocalCodec(
            parts.encoder,
            parts.compressor,
            parts.quantizer,
            parts.decompressor,
            Wrong(),
        )


class Halving(Compressor):
    def __init__(self):
        super().__init__()
        self.input_dim, self.output_dim = 32, 5
        self.downscale_factors = (2,)
        self.conv = torch.nn.Conv1d(32, 5, 2, 2)

    def forward(self, feats, lengths=None, state=None):
        x = feats.transpose(1, 2)
        x = torch.nn.functional.pad(x, (0, x.shape[2] % 2))
        return self.conv(x).transpose(1, 2)


class Doubling(Decompressor):
    def __init__(self):
        super().__init__()
        self.input_dim, self.output_dim = 5, 32
        self.upscale_factors = (2,)
        self.proj = torch.nn.Linear(5, 64)

    def forward(self, codes, lengths=None, state=None):
        return self.proj(codes).unflatten(2, (2, 32)).flatten(1, 2)


@pytest.mark.parametrize("size", [16000, 16160])
def test_a_compressor_and_decompressor_of_ones_own_code_long_audio(size):
    mini = FocalCodec.from_pretrained(OFFLINE)
    codec = FocalCodec(
        *(mini.encoder, Halving(), mini.quantizer, Doubling(), mini.decoder)
    ).eval()
    assert codec.token_rate == 25
    sig = torch.randn(2, size)
    lengths = torch.tensor([size, size - 3000])
    with torch.no_grad():
        toks, tok_lengths = codec.encode(sig, lengths)
        want, want_lengths = codec.decode(toks, tok_lengths)
        got, got_lengths = codec.decode(toks, tok_lengths, window=0.2)
        again, _ = codec.encode(sig, lengths, window=0.9, context=0.4)
    assert again.shape == toks.shape
    torch.testing.assert_close(got, want)
    assert torch.equal(got_lengths, want_lengths)
