"""Voice conversion: the search, references on disk, and the whole way."""

import copy
import json
import os
import pickle

import pytest
import torch
from causal_codecs import make_codec
from conftest import PARITY
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import AudioError, TokenError, VoiceError
from speechbrain_focalcodec.inference import PretrainedFocalCodec
from speechbrain_focalcodec.voice import VoiceReference
from speechbrain_focalcodec.voice import reference as voice_module
from speechbrain_focalcodec.voice.file import Facts

KNN_CASES = ("offline_50hz", "offline_25hz", "offline_12_5hz")
KNN_CASES += ("offline_options",)
FACTS = Facts("0123456789abcdef" * 4, "a model", 50.0, "someone")
MINI = FocalCodec.from_pretrained("focalcodec_mini_50hz")
CODECS = {
    **{
        name: FocalCodec.from_pretrained(PARITY / name)
        for name in ("offline_50hz", "offline_12_5hz", "causal_50hz")
    },
    "down_scaled": make_codec("down_scaled"),
    "mini": MINI,
}


def close(got, want, atol=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def noise(*shape):
    generator = torch.Generator().manual_seed(shape[-1])
    return 0.3 * torch.randn(*shape, generator=generator)


def naive(frames, qfeats, k):
    """All similarities at once; of equal ones the earliest."""
    scale = torch.where(frames.norm(dim=-1) > 0, 1 / frames.norm(dim=-1), 0)
    sims = qfeats @ frames.T * scale
    places = sims.sort(stable=True, dim=-1, descending=True).indices[..., :k]
    return frames[places].mean(-2)


def few_frames(codec, num=10):
    """A reference whose frames are far apart: rounding changes no choice."""
    toks = torch.arange(8 * num) * 7919 % codec.codebook_size
    whole = VoiceReference.from_toks(codec, [toks])
    frames = whole._frames[:: len(whole._frames) // num][:num]
    return VoiceReference(frames.clone(), whole.facts)


@pytest.fixture
def on_disk(monkeypatch):
    """No reference is small enough for memory."""
    monkeypatch.setattr(voice_module, "IN_MEMORY", 0)


# The search


@torch.no_grad()
@pytest.mark.parametrize("case", KNN_CASES)
@pytest.mark.parametrize("block", [voice_module.BLOCK, 300])
def test_matching_equals_the_published_code(case, block, monkeypatch):
    monkeypatch.setattr(voice_module, "BLOCK", block)
    codec = FocalCodec.from_pretrained(PARITY / case)
    expected = load_file(PARITY / case / "expected.safetensors")
    facts = Facts(codec.fingerprint, case, 50.0)
    reference = VoiceReference(expected["knn.matching_set"], facts)
    mean = reference.match(expected["knn.query"])
    close(mean, expected["knn.mean"])
    close(codec.feats_to_sig(mean), expected["knn.sig"], 1e-4)
    # And from waveforms: the words of b in the voice of a.
    reference = VoiceReference.from_sigs(codec, expected["a.sig"])
    close(reference._frames, expected["knn.matching_set"], 1e-4)
    sig = codec.convert_voice(expected["b.sig"], reference, window=None)
    size = min(sig.shape[1], expected["knn.sig"].shape[1])
    close(sig[:, :size], expected["knn.sig"][:, :size], 1e-4)


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(2, 6),
    st.integers(1, 60),
    st.integers(1, 9),
    st.booleans(),
    st.data(),
)
def test_a_search_in_blocks_equals_a_single_search(
    num, lengths, dim, block, queries, whole_numbers, data
):
    k = data.draw(st.integers(1, num))
    frames = torch.randn(num, dim)
    qfeats = torch.randn(len(lengths), max(lengths), dim)
    if whole_numbers:
        # Products are exact then, so that equal similarities are equal.
        frames, qfeats = frames.round(), qfeats.round()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_module, "BLOCK", block)
        patch.setattr(voice_module, "QUERIES", queries)
        got = VoiceReference(frames, FACTS).match(
            qfeats, k, torch.tensor(lengths)
        )
    want = naive(frames, qfeats, k)
    for row, length in enumerate(lengths):
        close(got[row, :length], want[row, :length])
        assert not got[row, length:].any()


@pytest.mark.parametrize("block", [1, 7 * 4, voice_module.BLOCK])
def test_the_first_of_equally_near_frames_are_used(block, monkeypatch):
    monkeypatch.setattr(voice_module, "BLOCK", block)
    direction = torch.tensor([3.0, 4.0, 0.0, 0.0])
    frames = torch.stack([direction * 2**i for i in range(20)])
    frames[:5] = -direction
    reference = VoiceReference(frames, FACTS)
    got = reference.match(direction[None, None], k=3)
    close(got[0, 0], direction * (2**5 + 2**6 + 2**7) / 3)
    # The cosine with a frame of zeros is 0.
    got = reference.match(torch.zeros(1, 1, 4), k=1)
    assert torch.equal(got[0, 0], -direction)
    silent = VoiceReference(torch.zeros(9, 4), FACTS)
    assert not silent.match(torch.randn(1, 3, 4)).any()


def test_padding_is_ignored():
    reference = VoiceReference(torch.randn(30, 8), FACTS)
    qfeats = torch.randn(2, 12, 8)
    alone = reference.match(qfeats[1:, :5])
    qfeats[1, 5:] = torch.nan
    got = reference.match(qfeats, lengths=torch.tensor([12, 5]))
    close(got[1:, :5], alone)
    assert not got[1, 5:].any()
    with pytest.raises(ValueError, match="qfeats has NaN"):
        reference.match(qfeats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_searched_in_float32(dtype):
    reference = VoiceReference(torch.randn(300, 16), FACTS)
    qfeats = torch.randn(1, 20, 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.match(qfeats)
    want = naive(reference._frames, qfeats.float(), 4)
    assert torch.equal(got, want.to(dtype))


def test_frames_are_read_in_blocks(on_disk, tmp_path, monkeypatch):
    frames = torch.randn(1000, 8)
    VoiceReference(frames, FACTS).save(tmp_path / "a.safetensors")
    reference = VoiceReference.load(tmp_path / "a.safetensors")
    assert not reference.in_memory
    read, sizes = reference._frames.read, []

    def recorded(start, stop):
        sizes.append(stop - start)
        return read(start, stop)

    monkeypatch.setattr(reference._frames, "read", recorded)
    monkeypatch.setattr(voice_module, "BLOCK", 800)
    qfeats = torch.randn(2, 25, 8)
    close(reference.match(qfeats), naive(frames, qfeats, 4))
    # 50 frames ask for 16 at once; then single ones are fetched.
    assert max(sizes) == 16
    sizes.clear()
    reference.save(tmp_path / "b.safetensors")
    assert max(sizes) == 100
    assert (tmp_path / "b.safetensors").read_bytes() == (
        tmp_path / "a.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda r: r.match(torch.zeros(1, 2, 3), k=6), VoiceError, "has 5 fra"),
        (lambda r: r.match(torch.zeros(1, 2, 3), k=0), ValueError, "k must be"),
        (lambda r: r.match(torch.zeros(1, 2, 3), 1.0), ValueError, "k must be"),
        (lambda r: r.match(torch.zeros(1, 2, 4)), ValueError, r"T, 3\], got"),
        (lambda r: r.match(torch.zeros(2, 3)), ValueError, r"T, 3\], got"),
        (lambda r: r.converter(MINI, k=6), VoiceError, "too few for k=6"),
        (lambda r: r.converter(MINI), VoiceError, "another model.*a model"),
        (
            lambda r: r.match(torch.zeros(1, 2, 3), 4, torch.tensor([3])),
            ValueError,
            r"lengths must lie in 1\.\.2",
        ),
    ],
)
def test_bad_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call(VoiceReference(torch.randn(5, 3), FACTS))


# Making a reference


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_a_reference_holds_the_frames_of_each_recording(name, monkeypatch):
    codec = CODECS[name]
    sigs = [noise(16000 * 5 + 3), noise(1), noise(7000)]
    toks = [
        codec.encode_stream(lambda i, j, s=sig: s[i:j], len(sig))
        for sig in sigs
    ]
    want = torch.cat(
        [
            codec.codes_to_qfeats(codec.toks_to_codes(one[None]))[0]
            for one in toks
        ]
    )
    reference = VoiceReference.from_sigs(codec, iter(sigs), "x")
    assert reference.in_memory and reference.facts.name == "x"
    assert reference.fingerprint == codec.fingerprint
    assert reference.seconds == pytest.approx(len(want) / 50)
    close(reference._frames, want)
    # By windows, and in a temporary file.
    monkeypatch.setattr(voice_module, "IN_MEMORY", 0)
    stored = VoiceReference.from_toks(codec, toks, window=1.3)
    assert not stored.in_memory
    close(stored.to("cpu")._frames, want)
    query = noise(1, 9, want.shape[1])
    close(stored.match(query, 1), naive(stored.to("cpu")._frames, query, 1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["offline_12_5hz", "causal_50hz", "mini"])
def test_continuous_references(name, monkeypatch):
    codec = CODECS[name]
    sigs = [noise(16000 * 5 + 3), noise(900), noise(7000)]
    feats = [codec.sig_to_feats(sig[None])[0] for sig in sigs]
    reference = VoiceReference.from_sigs(codec, iter(sigs), continuous=True)
    close(reference._frames, torch.cat(feats), 1e-4)
    same = VoiceReference.from_feats(codec, iter(feats), "x")
    close(same._frames, reference._frames, 1e-4)
    assert same.fingerprint == reference.fingerprint == codec.fingerprint
    quantized = VoiceReference.from_sigs(codec, sigs)
    assert quantized.num_frames >= reference.num_frames
    size = min(quantized.num_frames, reference.num_frames)
    assert (quantized._frames[:size] - reference._frames[:size]).abs().max() > 1
    # By windows, and in a temporary file; attention sees its window alone.
    monkeypatch.setattr(voice_module, "IN_MEMORY", 0)
    stored = VoiceReference.from_sigs(
        codec, sigs, continuous=True, window=3, context=1
    )
    assert not stored.in_memory and stored.num_frames == reference.num_frames
    if name != "offline_12_5hz":
        close(stored.to("cpu")._frames, reference._frames, 1e-4)


def test_missing_reference_speech_is_refused():
    codec = CODECS["offline_50hz"]
    for call, kind, message in (
        (lambda: VoiceReference.from_sigs(codec, []), VoiceError, "no refer"),
        (
            lambda: VoiceReference.from_sigs(
                codec, [noise(800), noise(800) * torch.nan]
            ),
            AudioError,
            r"sigs\[1\]: has NaN",
        ),
        (
            lambda: VoiceReference.from_toks(codec, [torch.tensor([99])]),
            TokenError,
            r"0\.\.31",
        ),
        (
            lambda: VoiceReference.from_feats(codec, [noise(3, 4)]),
            VoiceError,
            r"feats must be \[N, 32\]",
        ),
        (
            lambda: VoiceReference.from_sigs(codec, [], continuous=True),
            VoiceError,
            "no refer",
        ),
        (
            lambda: VoiceReference(torch.full((3, 2), torch.inf), FACTS),
            VoiceError,
            "infinite",
        ),
        (
            lambda: VoiceReference(torch.full((3, 2), 1e30), FACTS),
            VoiceError,
            "absurdly large",
        ),
        (lambda: VoiceReference(torch.zeros(0, 2), FACTS), VoiceError, "1.."),
        (lambda: VoiceReference(torch.zeros(2), FACTS), ValueError, "floats"),
        (lambda: Facts("0", "a", 50.0), VoiceError, "fingerprint"),
        (lambda: Facts("0" * 64, "a", torch.nan), VoiceError, "frame_rate"),
    ):
        with pytest.raises(kind, match=message):
            call()


# Converting


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_conversion_in_windows_equals_a_single_pass(name):
    codec = CODECS[name]
    reference = few_frames(codec)
    convert = reference.converter(codec, k=2)
    lengths = [int(9 * codec.token_rate), int(2 * codec.token_rate), 1]
    toks = torch.randint(codec.codebook_size, (3, lengths[0]))
    num = torch.tensor(lengths)
    want, samples = codec.decode(toks, num, window=None, convert=convert)
    plain, _ = codec.decode(toks, num, window=None)
    assert (want - plain).abs().max() > 1e-3
    for window in (1.3, 4):
        got, got_samples = codec.decode(
            toks, num, window=window, batch_size=2, convert=convert
        )
        assert torch.equal(got_samples, samples)
        close(got, want, 1e-4)
    pieces = list(codec.decode_stream(toks[0], window=1.3, convert=convert))
    assert len(pieces) > 2
    close(torch.cat(pieces), want[0], 1e-4)
    # Stage by stage.
    qfeats = codec.codes_to_qfeats(codec.toks_to_codes(toks[:1]))
    close(codec.feats_to_sig(reference.match(qfeats, 2)), want[:1], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", CODECS)
def test_a_batch_equals_single_utterances_and_keeps_durations(name):
    codec = CODECS[name]
    reference = few_frames(codec)
    lengths = torch.tensor([16000 * 3 + 5, 700])
    sig = noise(2, int(lengths.max()))
    options = {"k": 2, "window": 1.3, "context": 0.3}
    got, num = codec.convert_voice(sig, reference, lengths, **options)
    assert torch.equal(num, codec.output_num_samples(lengths))
    assert got.shape[1] == num.max() and not got[1, num[1] :].any()
    for row, length in enumerate(lengths):
        alone = codec.convert_voice(
            sig[row : row + 1, :length], reference, **options
        )
        close(got[row : row + 1, : num[row]], alone, 1e-4)


@torch.no_grad()
def test_a_speaker_is_not_changed_by_their_own_frames():
    sig, _ = read_audio(DEMO_CLIP, 16000)
    reference = VoiceReference.from_sigs(MINI, [sig])
    close(
        MINI.convert_voice(sig[None], reference, k=1),
        MINI.resynthesize(sig[None]),
        1e-4,
    )


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_accelerated_models_share_references(precision):
    fast = accelerate(copy.deepcopy(MINI), precision)
    sig, _ = read_audio(DEMO_CLIP, 16000)
    reference = VoiceReference.from_sigs(MINI, [sig])
    got = fast.convert_voice(sig[None, :16000], reference)
    assert got.shape == (1, 16000) and got.isfinite().all()
    assert VoiceReference.from_sigs(fast, [sig]).fingerprint == (
        reference.fingerprint
    )


@torch.no_grad()
def test_a_model_in_low_precision_converts():
    half = copy.deepcopy(CODECS["causal_50hz"]).bfloat16()
    sig = noise(1, 9600).bfloat16()
    reference = VoiceReference.from_sigs(half, sig)
    assert half.convert_voice(sig, reference).isfinite().all()


def test_a_changed_model_is_refused():
    codec = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    reference = VoiceReference.from_sigs(codec, [noise(8000)])
    codec.convert_voice(noise(1, 4000), reference)
    codec.convert_voice(noise(1, 4000), reference)
    again = pickle.loads(pickle.dumps(reference))
    again.converter(codec)
    with torch.no_grad():
        codec.decoder.head.proj.weight.add_(1)
    with pytest.raises(VoiceError, match="another model"):
        codec.convert_voice(noise(1, 4000), reference)


# On disk


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "voice.safetensors"
    VoiceReference(noise(20, 4), FACTS).save(path)
    return path


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_reference_reads_back(saved, monkeypatch, limit):
    monkeypatch.setattr(voice_module, "IN_MEMORY", limit)
    reference = VoiceReference.load(saved)
    assert reference.facts == FACTS
    assert reference.in_memory == (limit > 0)
    assert torch.equal(reference.to("cpu")._frames, noise(20, 4))
    # Any safetensors library reads it.
    assert torch.equal(load_file(saved)["frames"], noise(20, 4))
    reference.save(saved)
    # It may be replaced while it is in use.
    assert torch.equal(reference.to("cpu")._frames, noise(20, 4))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name", ["", "Zoë \U0001f600", 'a "quoted" \\ name'])
def test_names_read_back(tmp_path, name):
    path = tmp_path / "a.safetensors"
    VoiceReference(noise(2, 4), Facts("0" * 64, "m", 0.1, name)).save(path)
    assert VoiceReference.load(path).facts.name == name


def test_odd_names_are_made_printable():
    toks = [torch.arange(5)]
    reference = VoiceReference.from_toks(MINI, toks, "a\nb\udcff" + 300 * "c")
    assert reference.facts.name.startswith("a?b?ccc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "format is not"),
        ({"format": "pt"}, "format is not"),
        ({"version": "2"}, "version '2', this is for 1"),
        ({"model": None}, "other keys"),
        ({"color": "red"}, "other keys"),
        ({"fingerprint": "0" * 63}, "fingerprint is out of range"),
        ({"frame_rate": "nan"}, "frame_rate is out of range"),
        ({"frame_rate": "fast"}, "could not convert"),
        ({"name": "a\n"}, "name is out of range"),
        ({"frames": None}, "other keys"),
        ({"more": torch.zeros(1)}, "other keys"),
        ({"frames": torch.zeros(20, 4).half()}, "F16, not F32"),
        ({"frames": torch.zeros(80)}, r"\[80\], not \[M, C\]"),
        ({"frames": torch.zeros(0, 4)}, r"\[0, 4\], not"),
        ({"frames": torch.full((20, 4), torch.nan)}, "frames are NaN"),
        ({"frames": torch.full((20, 4), torch.inf)}, "frames are NaN"),
    ],
)
def test_other_content_is_refused(saved, change, message):
    tensors = load_file(saved)
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    for key, value in change.items():
        table = tensors if key in ("frames", "more") else metadata
        table[key] = value
    for table in (tensors, metadata):
        for key in [key for key, value in table.items() if value is None]:
            del table[key]
    save_file(tensors, saved, metadata)
    with pytest.raises(VoiceError, match=f"voice.safetensors: .*{message}"):
        VoiceReference.load(saved)


def test_other_files_are_refused(saved, tmp_path):
    for path, message in (
        (tmp_path / "none.safetensors", "no such file"),
        (tmp_path, "no such file"),
        (PARITY / "offline_50hz" / "model.safetensors", "format is not"),
        (DEMO_CLIP, "no voice reference"),
    ):
        with pytest.raises(VoiceError, match=message) as caught:
            VoiceReference.load(path)
        assert path.name in str(caught.value)
    with pytest.raises(VoiceError, match="must end in .safetensors"):
        VoiceReference.load(saved).save(tmp_path / "voice.pt")


def test_cut_files_are_refused(saved):
    whole = saved.read_bytes()
    for size in (0, 7, 8, 100, len(whole) - 4, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(VoiceError, match="voice.safetensors"):
            VoiceReference.load(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(VoiceError, match="voice.safetensors"):
        VoiceReference.load(saved)


def test_a_file_that_is_truncated_in_use_is_an_error(saved, on_disk):
    reference = VoiceReference.load(saved)
    os.truncate(saved, saved.stat().st_size - 8)
    with pytest.raises(VoiceError, match="was cut while it was in use"):
        reference.match(noise(1, 3, 4))


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_bytes_are_refused_or_change_only_numbers(saved, data):
    whole = saved.read_bytes()
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(data.draw(damaged(whole)))
    try:
        reference = VoiceReference.load(path)
    except VoiceError as error:
        assert "damaged.safetensors" in str(error)
    else:
        assert reference.match(noise(1, 3, 4)).isfinite().all()


# The interface and the command


@pytest.fixture(params=["offline_50hz", "causal_50hz"])
def model(request):
    return PretrainedFocalCodec.from_pretrained(
        PARITY / request.param, run_opts={"device": "cpu"}
    )


@pytest.fixture
def corpus(tmp_path):
    """A target speaker's folder, and speech of another speaker."""
    folder = tmp_path / "speaker"
    write_audio(folder / "a.wav", noise(9000).clamp(-1, 1), 16000)
    write_audio(folder / "sub" / "b.flac", noise(20000).clamp(-1, 1), 44100)
    write_audio(tmp_path / "in.wav", noise(8001).clamp(-1, 1), 16000)
    return folder


def test_files_and_batches_are_converted(model, corpus, tmp_path):
    reference = model.prepare_reference(corpus)
    assert reference.facts.name == "speaker"
    paths = [corpus / "a.wav", corpus / "sub" / "b.flac"]
    same = model.prepare_reference(paths, name="x")
    assert torch.equal(same._frames, reference._frames)
    assert same.facts.name == "x"
    feats = [
        model.codec.sig_to_feats(read_audio(p, 16000)[0][None]) for p in paths
    ]
    whole = model.prepare_reference(corpus, continuous=True)
    close(whole._frames, torch.cat(feats, 1)[0], 1e-4)
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    model.convert_voice_file(source, reference, target, k=2)
    written, rate = read_audio(target)
    assert len(written) == -(-8001 * rate // 16000)
    sig, _ = read_audio(source)
    wavs = torch.stack([sig, sig.flip(0)])
    lens = torch.tensor([1.0, 0.5])
    got = model.convert_voice_batch(wavs, reference, lens, k=2)
    assert got.dtype == torch.float32
    close(got[0].clamp(-1, 1), written, 1e-3)
    assert not got[1, len(written) // 2 + 2 :].any()
    want, _ = model.codec.convert_voice(
        wavs, reference, torch.tensor([8001, 4000]), k=2
    )
    close(got, want)


def test_bad_files_are_named(model, corpus, tmp_path):
    reference = model.prepare_reference(corpus / "a.wav")
    source = tmp_path / "in.wav"
    before = source.read_bytes()
    with pytest.raises(AudioError, match="would be overwritten"):
        model.convert_voice_file(source, reference, source)
    assert source.read_bytes() == before
    with pytest.raises(AudioError, match="none.wav"):
        model.convert_voice_file(tmp_path / "none.wav", reference, source)
    (corpus / "z.wav").write_bytes(before[:5000])
    with pytest.raises(AudioError, match="z.wav"):
        model.prepare_reference(corpus)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VoiceError, match="empty: holds no audio files"):
        model.prepare_reference([corpus / "a.wav", tmp_path / "empty"])
    with pytest.raises(VoiceError, match="paths: is empty"):
        model.prepare_reference([])


def focalcodec(*arguments, model=None):
    arguments = ["convert-voice", *map(str, arguments), "--device", "cpu"]
    if model is not None:
        arguments += ["--model", str(model)]
    return CliRunner().invoke(app, arguments)


def test_the_command_with_the_bundled_model(corpus, tmp_path):
    saved = tmp_path / "voice.safetensors"
    arguments = ("--reference", corpus, "--save-reference", saved)
    result = focalcodec(DEMO_CLIP, tmp_path / "a.wav", *arguments)
    assert result.exit_code == 0, result.output
    result = focalcodec(DEMO_CLIP, tmp_path / "b.wav", "--reference", saved)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.wav").read_bytes() == (
        tmp_path / "b.wav"
    ).read_bytes()
    result = focalcodec(
        *(DEMO_CLIP, tmp_path / "c.wav", "--reference", corpus, "--continuous")
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.wav").read_bytes() != (
        tmp_path / "c.wav"
    ).read_bytes()
    sig, rate = read_audio(tmp_path / "a.wav")
    clip, _ = read_audio(DEMO_CLIP)
    assert (len(sig), rate) == (len(clip), 16000)
    facts = VoiceReference.load(saved).facts
    assert facts.name == "speaker" and facts.fingerprint == MINI.fingerprint
    # The other way round: a folder of files, one frame each.
    result = focalcodec(
        *(corpus, tmp_path / "out", "--reference", DEMO_CLIP, "--k", 1)
    )
    assert result.exit_code == 0, result.output
    assert "convert-voice: 2 done, 0 skipped" in result.stdout
    assert len(read_audio(tmp_path / "out" / "sub" / "b.wav")[0]) == 7257


def test_the_command_refuses_in_one_line(corpus, tmp_path):
    saved = tmp_path / "voice.safetensors"
    tiny = PARITY / "offline_50hz"
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    focalcodec(
        *(source, target, "--reference", corpus, "--save-reference", saved),
        model=tiny,
    )
    target.unlink()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.wav").write_bytes(source.read_bytes()[:999])
    (tmp_path / "foreign.safetensors").write_bytes(b"x" * 99)
    for arguments, message in (
        (("--reference", tmp_path / "bad"), "cut.wav"),
        (("--reference", tmp_path / "none"), "none"),
        (("--reference", tmp_path / "foreign.safetensors"), "foreign"),
        (("--reference", corpus, "--k", 100000), "too few for k=100000"),
        (
            ("--reference", corpus, "--save-reference", saved),
            "voice.safetensors: exists; give --overwrite",
        ),
        (
            ("--reference", corpus, "--save-reference", tmp_path / "a.pt"),
            "a.pt: a reference's name must end in .safetensors",
        ),
    ):
        result = focalcodec(source, target, *arguments, model=tiny)
        assert result.exit_code == 1, arguments
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not target.exists()
    result = focalcodec(
        *(source, target, "--reference", saved), model=PARITY / "offline_25hz"
    )
    assert result.exit_code == 1
    assert "belongs to another model (offline_50hz" in result.stderr
    result = focalcodec(source, target, "--reference", saved, "--k", 0)
    assert result.exit_code == 2 and "--k" in result.stderr
