"""Exported causal models stream what PyTorch gives, without PyTorch."""

import importlib
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from causal_codecs import CODECS, make_codec
from conftest import PARITY
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file
from torch.nn import functional as F

from speechbrain_focalcodec import FocalCodec, OnnxFocalCodec
from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    ConfigError,
    StreamError,
    TokenError,
)
from speechbrain_focalcodec.onnx import export as onnx_export
from speechbrain_focalcodec.onnx.graphs import StepGraph
from speechbrain_focalcodec.onnx.sessions import (
    OnnxStreamingDecoder,
    OnnxStreamingEncoder,
    OnnxStreamingResynthesizer,
)

CAUSAL = ("causal_50hz", "causal_50hz_lookahead0")
# Tracing takes many seconds: one model here, the others when slow.
CASE = CAUSAL[0]
MINI = PARITY.parents[1] / "hparams/model/focalcodec_mini_50hz_causal.yaml"
SESSIONS = (
    OnnxStreamingEncoder,
    OnnxStreamingDecoder,
    OnnxStreamingResynthesizer,
)
MARGIN = 1e-3


def build(name):
    """A recorded model, a small one with its window, or the mini one."""
    if name == "mini":
        with open(MINI) as stream:
            return load_hyperpyyaml(stream)["codec"].eval()
    if name in CAUSAL:
        return FocalCodec.from_pretrained(PARITY / name)
    name, window = name.split(":")
    return make_codec(name, int(window))


def assert_close(got, want):
    np.testing.assert_allclose(got, np.asarray(want), rtol=0, atol=1e-4)


def make_sig(seed, *shape):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.3, shape).astype(np.float32)


def sure_of(codec, sig):
    """Which tokens do not hang on rounding."""
    lats = codec.feats_to_lats(codec.sig_to_feats(sig))
    return (lats.abs().amin(-1) > MARGIN).numpy()


def check_recorded(exported, case):
    expected = load_file(PARITY / case / "expected.safetensors")
    for which in ("a",):
        sig, toks, rec_sig = (
            expected[f"{which}.{name}"] for name in ("sig", "toks", "rec_sig")
        )
        got, lengths = exported.encode(sig.numpy())
        assert np.array_equal(got, toks)
        assert lengths.tolist() == [toks.shape[1]]
        rec, lengths = exported.decode(toks.numpy())
        assert_close(rec, rec_sig)
        assert lengths.tolist() == [rec_sig.shape[1]]
        got = run(OnnxStreamingEncoder(exported), sig[0].numpy(), [999])
        assert np.array_equal(got, toks[0])


def run(session, x, cuts):
    """Push `x` in pieces that end at `cuts`, and flush."""
    parts = [session.push(part) for part in np.split(x, sorted(cuts))]
    return np.concatenate([*parts, session.flush()])


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained(PARITY / CASE).requires_grad_(False)


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "made"
    onnx_export.export_onnx(codec, folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return OnnxFocalCodec(folder, threads=1)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def inputs(session_class, seed, length):
    if session_class is OnnxStreamingDecoder:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 64, -(-length // 320))
    return make_sig(seed, length)


# Before anything is traced


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *CAUSAL,
        "mini",
        *(f"{name}:12" for name in CODECS),
        "vocos:160",
        "down_scaled:160",
    ],
)
def test_steps_compute_what_the_codec_does(name):
    """Also of two streams of which one began later."""
    codec = build(name)
    frames = codec.chunk_length // codec.encoder.hop_length
    # Beyond the windows.
    chunks = 180 // frames if name.endswith("160") else 15
    sig = torch.from_numpy(make_sig(1, 2, chunks * codec.chunk_length - 700))
    want, _ = codec.encode(sig)
    rec, _ = codec.decode(want)
    for make, x, result in (
        (StepGraph.encoder, sig, want),
        (StepGraph.decoder, want, rec),
    ):
        step = make(codec)
        outputs = [[], []]
        kept = [torch.cat([v, v]) for v in step.start.values()]
        seen = torch.tensor([0, 0])
        late = 3 * step.chunk_length
        both = x[0], torch.cat([x[0, :late], x[1]])
        for first in range(0, len(both[1]), step.chunk_length):
            if first == late:
                seen[1] = 0  # what it carries is another's: not looked at
            parts = [y[first : first + step.chunk_length] for y in both]
            lengths = torch.tensor([max(len(y), 1) for y in parts])
            parts = [F.pad(y, (0, step.chunk_length - len(y))) for y in parts]
            y, counts, seen, *kept = step(
                torch.stack(parts), lengths, seen, kept
            )
            if first < x.shape[1]:
                outputs[0].append(y[0, : counts[0]])
            if first >= late:
                outputs[1].append(y[1, : counts[1]])
        for got, wanted in zip(outputs, result, strict=True):
            assert_close(torch.cat(got), wanted)


# What is exported


def test_recorded_case(exported):
    check_recorded(exported, CASE)


def test_facts_are_those_of_the_codec(codec, exported):
    for name in (
        *("name", "fingerprint", "sample_rate_input", "sample_rate_output"),
        *("token_rate", "hop_length", "output_hop_length", "codebook_size"),
        *("bitrate", "causal", "chunk_length", "latency"),
    ):
        assert getattr(exported, name) == getattr(codec, name), name
    for samples in (1, 319, 320, 321, 12345, 10**9):
        assert exported.num_tokens(samples) == codec.num_tokens(samples)


@torch.no_grad()
def test_batches_with_lengths(codec, exported):
    sig = make_sig(2, 18, 9000)  # more than are done at once
    lengths = np.array([9000, 1, 1280, 1281, 320, 8000] * 3)
    want, want_lengths = codec.encode(
        torch.from_numpy(sig), torch.from_numpy(lengths)
    )
    toks, tok_lengths = exported.encode(sig, lengths)
    assert np.array_equal(toks, want)
    assert np.array_equal(tok_lengths, want_lengths)
    rec, rec_lengths = exported.decode(toks, tok_lengths)
    assert_close(rec, codec.decode(want, want_lengths)[0])
    assert np.array_equal(rec_lengths, 480 * tok_lengths)
    wanted, _ = codec.resynthesize(
        torch.from_numpy(sig), torch.from_numpy(lengths)
    )
    assert_close(exported.resynthesize(sig, lengths)[0], wanted)


@settings(max_examples=15)
@given(
    st.integers(1, 20000),
    st.lists(st.integers(0, 20000), max_size=8),
    st.integers(0, 9),
)
def test_any_cutting_gives_what_one_pass_gives(exported, length, cuts, seed):
    sig = make_sig(seed, length)
    want, _ = exported.encode(sig[None])
    rec, _ = exported.decode(want)
    toks = run(OnnxStreamingEncoder(exported), sig, cuts)
    assert toks.dtype == np.int64 and np.array_equal(toks, want[0])
    cuts = [cut // 320 for cut in cuts]
    got = run(OnnxStreamingDecoder(exported), toks, cuts)
    assert got.dtype == np.float32 and np.array_equal(got, rec[0])


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 1280, 1281, 30000])
def test_resynthesis_lasts_as_long_as_the_input(codec, exported, length):
    sig = make_sig(3, length)
    want = codec.resynthesize(torch.from_numpy(sig[None]))[0]
    session = OnnxStreamingResynthesizer(exported)
    assert_close(run(session, sig, [700, 5000, 5001]), want)
    assert session.ended and not len(session.flush())
    session.reset()
    assert_close(run(session, sig, []), want)


def test_a_stream_in_any_language(codec, folder):
    """What docs/onnx.md tells: outputs fed back, nothing else."""
    runtime = importlib.import_module("onnxruntime")
    facts = json.loads((folder / "onnx.json").read_text())["encoder"]
    session = runtime.InferenceSession(str(folder / "encoder_step.onnx"))
    feed = {"seen": np.zeros(1, np.int64)} | {
        f"state.{name}": np.zeros((1, *shape), np.float32)
        for name, shape in facts["state"].items()
    }
    sig = make_sig(4, 1, 20 * facts["chunk_length"])
    toks = []
    for chunk in np.split(sig, 20, axis=1):
        feed |= {"sig": chunk, "lengths": np.array([chunk.shape[1]])}
        names = [output.name for output in session.get_outputs()]
        given = dict(zip(names, session.run(None, feed), strict=True))
        toks.append(given["toks"])
        feed = {
            name: given[name.replace("state.", "state_out.", 1)]
            for name in feed
            if name.startswith("state.")
        } | {"seen": given["seen_out"]}
    want, _ = codec.encode(torch.from_numpy(sig))
    assert np.array_equal(np.concatenate(toks, axis=1), want)


@pytest.mark.parametrize("session_class", SESSIONS)
@pytest.mark.parametrize("cut", [0, 500, 9000])
def test_a_stream_goes_on_in_another_session(
    exported, session_class, cut, tmp_path
):
    x = inputs(session_class, 3, 20000)
    cut = cut if session_class is not OnnxStreamingDecoder else cut // 320
    want = run(session_class(exported), x, [cut])
    first, second = session_class(exported), session_class(exported)
    second.push(x[:999])  # what it did before does not matter
    part = first.push(x[:cut])
    path = tmp_path / "state.safetensors"
    save_arrays(first.state_dict(), path)
    first.push(x[cut:])
    second.load_state_dict(load_arrays(path))
    rest = np.concatenate([second.push(x[cut:]), second.flush()])
    assert np.array_equal(np.concatenate([part, rest]), want)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_state_that_does_not_fit_changes_nothing(exported, session_class):
    session = session_class(exported)
    session.push(inputs(session_class, 4, 10000))
    before = session.state_dict()
    name = next(key for key in before if key.endswith(".context"))
    pending = next(key for key in before if "pending" in key)
    seen = next(key for key in before if "seen" in key)
    bad = [
        {k: v for k, v in before.items() if k != name},
        {k: v for k, v in before.items() if k != pending},
        {**before, "more": np.zeros(1)},
        {**before, "state.more": np.zeros(1)},
        {**before, name: before[name][:, 1:]},
        {**before, name: before[name].astype(np.float64)},
        {**before, seen: before[seen] - 1000},
        {**before, pending: np.zeros(5000, before[pending].dtype)},
        {},
    ]
    for arrays in bad:
        with pytest.raises(StreamError, match="state"):
            session.load_state_dict(arrays)
        after = session.state_dict()
        assert all(np.array_equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_a_state_with_nan_is_refused(exported, session_class):
    session = session_class(exported)
    session.push(inputs(session_class, 4, 10000))
    before = session.state_dict()
    for name, array in before.items():
        if array.dtype.kind == "f" and array.size:
            bad = {k: v.copy() for k, v in before.items()}
            bad[name].flat[-1] = np.nan
            with pytest.raises(StreamError, match="NaN"):
                session.load_state_dict(bad)
    after = session.state_dict()
    assert all(np.array_equal(after[key], before[key]) for key in before)


def test_absurd_states_are_refused(exported):
    session = OnnxStreamingResynthesizer(exported)
    session.push(make_sig(1, 3000))
    state = session.state_dict()
    for counts in ([-1, 0], [10, 10**6]):
        with pytest.raises(StreamError, match="counts say"):
            session.load_state_dict({**state, "counts": np.array(counts)})
    decoder = OnnxStreamingDecoder(exported)
    pending = np.array([10**6])
    with pytest.raises(StreamError, match="toks"):
        decoder.load_state_dict({**decoder.state_dict(), "pending": pending})


def fail_at(direction, call):
    """Let one call of a direction fail, as where memory is short."""
    run, calls = direction.run, iter(range(1000))

    def failing(*args):
        if next(calls) == call:
            raise MemoryError("injected")
        return run(*args)

    direction.run = failing


def ways(session):
    if isinstance(session, OnnxStreamingResynthesizer):
        return [session.encoder, session.decoder]
    return [session]


@pytest.mark.parametrize("session_class", SESSIONS)
@pytest.mark.parametrize("call", [0, 2])
def test_a_failure_ends_the_stream(exported, session_class, call):
    x = inputs(session_class, 1, 20000)
    for i in range(len(ways(session_class(exported)))):
        session = session_class(exported)
        fail_at(ways(session)[i].direction, call)
        cuts = range(session.chunk_length, len(x), session.chunk_length)
        pieces = iter(np.split(x, cuts))
        with pytest.raises(MemoryError):
            for piece in pieces:
                session.push(piece)
        for action in (
            lambda: session.push(next(pieces)),  # noqa: B023
            session.flush,
            session.state_dict,
        ):
            with pytest.raises(StreamError, match=r"failure.*reset"):
                action()
        session.reset()
        want = run(session_class(exported), x, [])
        assert np.array_equal(run(session, x, [50]), want)


@pytest.mark.parametrize("session_class", SESSIONS)
def test_sessions_pickle(exported, session_class):
    x = inputs(session_class, 3, 9000)
    half = len(x) // 2
    session = session_class(exported)
    session.push(x[:half])
    loaded = pickle.loads(pickle.dumps(session))
    want = run(session, x[half:], [])
    assert np.array_equal(run(loaded, x[half:], [7]), want)


def test_errors_of_onnxruntime_end_the_stream(exported):
    session = OnnxStreamingEncoder(exported)
    session._carried = session._carried[:-1] + session._carried[:1]
    with pytest.raises(CheckpointError, match="onnxruntime cannot run"):
        session.push(make_sig(1, 1280))
    with pytest.raises(StreamError, match="failure"):
        session.flush()


def test_bad_input_is_named(exported):
    encoder, decoder = (x(exported) for x in SESSIONS[:2])
    with pytest.raises(AudioError, match="sig"):
        encoder.push(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"sig: must be \[T\]"):
        encoder.push(np.zeros((1, 100)))
    with pytest.raises(ValueError, match="float"):
        encoder.push(np.zeros(100, np.int16))
    with pytest.raises(ValueError, match=r"toks: must be \[N\]"):
        decoder.push(np.zeros((1, 4), np.int64))
    with pytest.raises(TokenError, match=r"0\.\.63"):
        decoder.push(np.array([64]))
    with pytest.raises(TokenError, match="integers"):
        decoder.push(np.array([0.5]))
    # Nothing of it was taken in.
    assert len(encoder.flush()) == len(decoder.flush()) == 0
    with pytest.raises(StreamError, match="reset"):
        encoder.push(np.zeros(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "offline"}, "an offline model has no chunks"),
        ({"chunk_length": None}, "a causal model has chunks"),
        ({"chunk_length": 640}, "a causal model has chunks"),
        ({"decoder": None}, "a causal model has chunks"),
        ({"causal": False}, "a causal model has chunks"),
        ({"encoder": {"chunk_length": 1280}}, "encoder.state"),
        ({"files": {"encoder.onnx": "0" * 64}}, "files must name decoder_step"),
    ],
)
def test_loading_refuses_facts(changes, message, copied):
    path = copied / "onnx.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=f"onnx.json: .*{message}"):
        OnnxFocalCodec(copied)


def test_graphs_of_another_model_are_found_out(copied):
    path = copied / "onnx.json"
    facts = json.loads(path.read_text())
    facts["encoder"]["state"].popitem()
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="encoder_step.onnx.*onnx.json"):
        OnnxFocalCodec(copied)


def test_streams_without_torch(folder):
    code = f"""
import sys
import numpy as np
from speechbrain_focalcodec import OnnxFocalCodec
from speechbrain_focalcodec.onnx.sessions import OnnxStreamingResynthesizer
session = OnnxStreamingResynthesizer(OnnxFocalCodec({str(folder)!r}, threads=1))
assert len(session.push(np.zeros(1280, np.float32))) == 1920
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("option", ["onnx", "onnx+int8"])
def test_benchmark_of_chunks(option, codec, folder, monkeypatch):
    # As for a script that is run: the benchmarks import each other.
    sys.path.append(str(PARITY.parents[1] / "benchmarks"))
    streaming = importlib.import_module("streaming")

    def export(codec, out, int8):
        assert int8 == (option == "onnx+int8")
        shutil.copytree(folder, out, dirs_exist_ok=True)

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    monkeypatch.setitem(streaming.CAUSAL_MODELS, "tiny", lambda: codec)
    settings = streaming.Settings([1], chunks=3, warm=1, read_bytes=1 << 20)
    monkeypatch.setattr(settings, "streams", 0)
    before = torch.get_num_threads()
    try:
        results, _ = streaming.measure(["tiny"], [option], settings)
    finally:
        torch.set_num_threads(before)
    assert [result.option for result in results] == ["float32", option]
    assert len(results[1].seconds) == 3


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "name", [CAUSAL[1], "mini", "down_scaled:160", "all_options:12"]
)
def test_other_models(name, int8, tmp_path):
    codec = build(name)
    onnx_export.export_onnx(codec, tmp_path, int8)
    exported = OnnxFocalCodec(tmp_path, threads=1)
    if name in CAUSAL and not int8:
        check_recorded(exported, name)
    sig = make_sig(5, 1, 100 * 1280 - 700)
    toks, _ = exported.encode(sig)
    streamed = run(OnnxStreamingEncoder(exported), sig[0], [777, 50000])
    assert np.array_equal(streamed, toks[0])
    want, _ = codec.encode(torch.from_numpy(sig))
    rec, _ = codec.decode(want)
    got, _ = exported.decode(want.numpy())
    if int8:
        error = np.square(got - rec.numpy()).mean()
        assert error < 0.1 * rec.square().mean()
        return
    sure = sure_of(codec, torch.from_numpy(sig))
    assert sure.mean() > 0.9
    assert np.array_equal(toks[sure], want.numpy()[sure])
    assert_close(got, rec)
