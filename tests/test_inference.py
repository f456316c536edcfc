"""The pretrained interface: batches, files and both ways of loading."""

import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchFrom,
    FetchSource,
    LocalStrategy,
)

from speechbrain_focalcodec.audio import read_audio, resample, write_audio
from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    TokenError,
)
from speechbrain_focalcodec.hyperparams import write_hyperparams
from speechbrain_focalcodec.inference import (
    PretrainedFocalCodec,
)
from speechbrain_focalcodec.utils.lengths import absolute_lengths

PARITY = Path(__file__).parent / "parity"
CPU = {"device": "cpu"}


@pytest.fixture(scope="module", params=["offline_50hz", "causal_50hz"])
def model(request):
    """One of two tiny models; the causal one has 24 kHz out."""
    return PretrainedFocalCodec.from_pretrained(
        PARITY / request.param, run_opts=CPU
    )


@pytest.fixture
def export(model, tmp_path):
    """A folder as the export command writes it."""
    folder = tmp_path / "export"
    model.codec.save_pretrained(folder)
    write_hyperparams(folder, model.codec)
    return folder


def noise(*shape):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(*shape, generator=generator)


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
    }


def test_a_batch_equals_single_utterances(model):
    wavs = noise(3, 9000)
    lengths = torch.tensor([9000, 5001, 3333])
    tokens, token_lens = model.encode_batch(wavs, lengths / 9000)
    assert tokens.dtype == torch.int64
    rec_wavs, wav_lens = model.decode_batch(tokens, token_lens)
    assert rec_wavs.dtype == torch.float32
    assert token_lens.max() == 1 and wav_lens.max() == 1
    for i, length in enumerate(lengths):
        alone, _ = model.encode_batch(wavs[i : i + 1, :length])
        assert round(float(token_lens[i]) * tokens.shape[1]) == alone.shape[1]
        assert torch.equal(tokens[i, : alone.shape[1]], alone[0])
        rec, _ = model.decode_batch(alone)
        assert round(float(wav_lens[i]) * rec_wavs.shape[1]) == rec.shape[1]
        assert (rec_wavs[i, : rec.shape[1]] - rec[0]).abs().max() < 1e-5


@settings(derandomize=True, deadline=None, max_examples=50)
@given(data=st.data(), longest=st.integers(1, 2**24))
def test_relative_lengths_become_the_absolute_ones(data, longest):
    absolute = torch.tensor(
        data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=4))
    )
    # No memory behind it, however long.
    batch = torch.zeros(1, 1).expand(len(absolute), longest)
    found = absolute_lengths("wav_lens", absolute / longest, batch)
    assert torch.equal(found, absolute)


@pytest.mark.parametrize("rate", [24000, 44101])
def test_another_sample_rate_equals_single_utterances(model, rate):
    wavs = noise(2, 12000)
    # The content of the padding must not matter.
    wavs[1, 6000:] = 5.0
    tokens, token_lens = model.encode_batch(
        wavs, torch.tensor([1.0, 0.5]), sample_rate=rate
    )
    for i, length in enumerate((12000, 6000)):
        wav = resample(wavs[i : i + 1, :length], rate, 16000)
        alone, _ = model.encode_batch(wav)
        assert round(float(token_lens[i]) * tokens.shape[1]) == alone.shape[1]
        assert torch.equal(tokens[i, : alone.shape[1]], alone[0])


def test_forward_keeps_the_duration(model):
    wavs = noise(2, 7001)
    rec = model(wavs, torch.tensor([1.0, 0.5]))
    rate = model.codec.sample_rate_output
    assert rec.shape == (2, math.ceil(7001 * rate / 16000))
    assert not rec.requires_grad
    assert (model(wavs[:1]) - rec[:1]).abs().max() < 1e-5


def test_batches_are_checked(model):
    wavs = noise(2, 4000)
    for wrong in (wavs[0], wavs[None], wavs.short()):
        with pytest.raises(ValueError, match="wavs: must be"):
            model.encode_batch(wrong)
    for lens in ([1.0], [1.0, 1.5], [1.0, 0.0], [1.0, math.nan], [[1.0, 1.0]]):
        with pytest.raises(ValueError, match="wav_lens"):
            model.encode_batch(wavs, torch.tensor(lens))
    with pytest.raises(ValueError, match="from_rate=1"):
        model.encode_batch(wavs, sample_rate=1)
    with pytest.raises(AudioError, match="wavs: has NaN"):
        model.encode_batch(wavs * math.nan)
    with pytest.raises(AudioError, match="wavs: is empty"):
        model(wavs[:, :0])


def test_tokens_are_checked(model):
    tokens = torch.zeros(2, 9).long()
    for wrong in (tokens[0], tokens.float()):
        with pytest.raises(ValueError, match="tokens: must be"):
            model.decode_batch(wrong)
    with pytest.raises(ValueError, match="token_lens"):
        model.decode_batch(tokens, torch.tensor([1.0, 2.0]))
    with pytest.raises(TokenError, match="is empty"):
        model.decode_batch(tokens[:, :0])
    for value in (-1, model.codec.codebook_size):
        with pytest.raises(TokenError, match=str(value)):
            model.decode_batch(tokens + value)


def test_files_have_the_tokens_of_their_signal(model, tmp_path):
    path = tmp_path / "a.flac"
    write_audio(path, noise(30000), 44100)
    wavs = resample(read_audio(path)[0], 44100, 16000)[None]
    tokens = model.encode_file(path)
    assert torch.equal(tokens, model.encode_batch(wavs)[0][0])
    file = model.tokenize_file(path)
    assert torch.equal(file.toks, tokens)
    assert file.fingerprint == model.codec.fingerprint
    assert file.codebook_size == model.codec.codebook_size


@pytest.mark.parametrize(
    ("length", "rate"), [(1, 8000), (7001, 16000), (9999, 24000), (8000, 44100)]
)
def test_resynthesized_files_keep_their_duration(model, tmp_path, length, rate):
    write_audio(tmp_path / "in.wav", noise(length), rate)
    model.resynthesize_file(tmp_path / "in.wav", tmp_path / "out.wav")
    sig, out_rate = read_audio(tmp_path / "out.wav")
    assert out_rate == model.codec.sample_rate_output
    assert len(sig) == math.ceil(length * out_rate / rate)


def test_decoded_files_have_the_length_asked_for(model, tmp_path):
    tokens = model.encode_batch(noise(1, 8000))[0][0]
    sig = model.decode_batch(tokens[None])[0][0].clamp(-1, 1)
    for extra in (-100, 0, 100):
        path = tmp_path / "a.wav"
        model.decode_to_file(tokens, path, len(sig) + extra)
        written, _ = read_audio(path)
        assert len(written) == len(sig) + extra
        both = min(len(written), len(sig))
        assert (written[:both] - sig[:both]).abs().max() < 1e-4
    model.decode_to_file(tokens, path)
    assert len(read_audio(path)[0]) == len(sig)
    with pytest.raises(ValueError, match=r"must be \[N\]"):
        model.decode_to_file(tokens[None], path)


def test_damaged_files_are_refused(model, tmp_path):
    path = tmp_path / "cut.wav"
    write_audio(path, noise(8000), 16000)
    path.write_bytes(path.read_bytes()[:-4000])
    for method in (
        model.encode_file,
        lambda path: model.resynthesize_file(path, tmp_path / "out.wav"),
    ):
        with pytest.raises(AudioError, match="cut.wav"):
            method(path)
    assert not (tmp_path / "out.wav").exists()


def test_from_hparams_loads_the_same_model(model, export, tmp_path):
    before = digests(export)
    source = FetchSource(FetchFrom.LOCAL, str(export))
    for options in (
        {"source": export, "savedir": tmp_path / "saved"},
        {"source": source, "savedir": tmp_path / "again"},
        {"source": str(export)},
    ):
        loaded = PretrainedFocalCodec.from_hparams(run_opts=CPU, **options)
        assert loaded.codec.name == model.codec.name
        assert loaded.fingerprint == model.fingerprint
        wavs = noise(2, 6000)
        assert torch.equal(
            loaded.encode_batch(wavs)[0], model.encode_batch(wavs)[0]
        )
        assert not any(p.requires_grad for p in loaded.parameters())
        assert loaded.hparams.savedir == options.get("savedir")
    assert digests(export) == before


def test_an_export_can_be_moved(model, export, tmp_path, monkeypatch):
    moved = export.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    loaded = PretrainedFocalCodec.from_hparams("moved", run_opts=CPU)
    assert loaded.fingerprint == model.fingerprint
    assert moved.is_dir()


@pytest.mark.parametrize("strategy", ["SYMLINK", "COPY"])
def test_a_savedir_of_another_model_is_refused(
    model, export, tmp_path, strategy
):
    other = tmp_path / "other"
    PretrainedFocalCodec.from_pretrained(
        PARITY / "offline_25hz", run_opts=CPU
    ).codec.save_pretrained(other)
    # The same hyperparameters: the weights alone would tell.
    shutil.copy(export / "hyperparams.yaml", other)
    options = {
        "savedir": tmp_path / "savedir",
        "local_strategy": LocalStrategy[strategy],
        "run_opts": CPU,
    }
    for _ in range(2):
        loaded = PretrainedFocalCodec.from_hparams(export, **options)
        assert loaded.fingerprint == model.fingerprint
    with pytest.raises(CheckpointError, match="savedir: holds another model"):
        PretrainedFocalCodec.from_hparams(other, **options)
    with pytest.raises(CheckpointError, match="holds another model than o/n"):
        PretrainedFocalCodec.from_hparams("o/n", **options)
    # Overwriting can be requested.
    write_hyperparams(
        other, PretrainedFocalCodec.from_pretrained(other, run_opts=CPU).codec
    )
    options["fetch_config"] = FetchConfig(overwrite=True)
    loaded = PretrainedFocalCodec.from_hparams(other, **options)
    assert loaded.codec.token_rate == 25


def test_a_savedir_of_another_repository_is_refused(
    export, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda filename, **options: export / filename,
    )
    options = {
        "savedir": tmp_path / "savedir",
        "local_strategy": LocalStrategy.COPY,
        "run_opts": CPU,
    }
    for _ in range(2):
        PretrainedFocalCodec.from_hparams("owner/first", **options)
    with pytest.raises(CheckpointError, match="than owner/second"):
        PretrainedFocalCodec.from_hparams("owner/second", **options)
    options["fetch_config"] = FetchConfig(revision="v1")
    with pytest.raises(CheckpointError, match="than owner/first@v1"):
        PretrainedFocalCodec.from_hparams("owner/first", **options)


def test_from_hparams_loads_strictly(export):
    weights = load_file(export / "model.safetensors")
    name, _ = weights.popitem()
    save_file(weights, export / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        PretrainedFocalCodec.from_hparams(export, run_opts=CPU)


def test_from_pretrained_executes_nothing(model, export, tmp_path):
    marker = tmp_path / "marker"
    (export / "hyperparams.yaml").write_text(
        f"codec: !apply:pathlib.Path.touch [!new:pathlib.Path [{marker}]]\n"
    )
    loaded = PretrainedFocalCodec.from_pretrained(export, run_opts=CPU)
    assert loaded.fingerprint == model.fingerprint
    assert not marker.exists()


def test_speechbrains_load_audio_matches_the_model(model, tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, noise(9000), 24000)
    sig = model.load_audio(str(path))
    assert sig.shape == (6000,)
    assert model.encode_batch(sig[None])[0].shape[0] == 1


def test_a_codec_is_needed():
    with pytest.raises(ValueError, match="has no 'codec'"):
        PretrainedFocalCodec(modules={}, run_opts=CPU)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_long_files_are_processed_in_parts(model, tmp_path, rate):
    """With small windows, a file equals its whole signal."""
    codec = model.codec
    wavs = noise(1, 9 * rate)
    write_audio(tmp_path / "long.wav", wavs[0], rate)
    sig = read_audio(tmp_path / "long.wav", codec.sample_rate_input)[0]
    options = {"window": 2.0, "context": 0.5}
    short = PretrainedFocalCodec(modules={"codec": codec}, run_opts=CPU)
    short.window, short.context = options.values()
    file = short.tokenize_file(tmp_path / "long.wav")
    with torch.no_grad():
        toks, _ = codec.encode(sig[None], **options)
        whole, _ = codec.decode(toks)
    assert torch.equal(file.toks, toks[0])
    for suffix in (".wav", ".flac"):
        path = (tmp_path / "out").with_suffix(suffix)
        short.decode_to_file(file.toks, path, file.num_samples)
        got = read_audio(path)[0]
        assert len(got) == file.num_samples
        # The end that the codec does not encode is silent.
        want = torch.zeros(file.num_samples)
        kept = whole[0, : file.num_samples].clamp(-1, 1)
        want[: len(kept)] = kept
        assert (got - want).abs().max() < 1e-4
    batch, _ = short.encode_batch(sig[None])
    assert torch.equal(batch, toks)


def test_a_damaged_long_file_leaves_no_output(model, tmp_path):
    write_audio(tmp_path / "whole.wav", noise(5 * 16000), 16000)
    data = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="half.wav: is cut short"):
        model.resynthesize_file(tmp_path / "half.wav", tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


def test_precision_is_an_option_of_loading():
    exact = PretrainedFocalCodec.from_pretrained(
        PARITY / "offline_50hz", run_opts=CPU
    )
    fast = PretrainedFocalCodec.from_pretrained(
        PARITY / "offline_50hz", run_opts=CPU, precision="bf16"
    )
    assert fast.codec.accelerated == "bf16"
    assert fast.fingerprint == exact.fingerprint


def test_the_convention_of_audio_tokenizers(model):
    wavs = 0.1 * torch.randn(2, 16000)
    lens = torch.tensor([1.0, 0.5])
    want, token_lens = model.encode_batch(wavs, lens)
    tokens, embeddings = model.encode(wavs, lens)
    assert tokens.shape == (2, 1, want.shape[1])
    assert torch.equal(tokens[:, 0], want)
    assert torch.equal(model.encode(wavs[:, None], lens)[0], tokens)
    table = model.get_pretrained_embeddings()
    assert table.shape == (model.codec.codebook_size, model.codec.quantizer.dim)
    size = round(float(token_lens[1]) * want.shape[1])
    assert torch.equal(embeddings[1, :size], table[want[1, :size]])
    assert not embeddings[1, size:].any()
    sig, _ = model.decode_batch(want)
    assert torch.equal(model.decode(tokens), sig)
    assert torch.equal(model.decode(want), sig)
    sig, _ = model.decode_batch(want, token_lens)
    assert torch.equal(model.decode(tokens, token_lens), sig)
    # As callers of several tokenizers ask for it.
    assert torch.equal(
        model.get_pretrained_embeddings(len(table), num_codebooks=1), table
    )
    with pytest.raises(ValueError, match="vocab_size: the model has"):
        model.get_pretrained_embeddings(vocab_size=7)
    with pytest.raises(ValueError, match="inputs"):
        model.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="length"):
        model.encode(wavs, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="tokens"):
        model.decode(torch.zeros(1, 2, 5).long())
