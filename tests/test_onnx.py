"""Exported models give what PyTorch gives, without PyTorch."""

import importlib
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import PARITY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec, OnnxFocalCodec
from speechbrain_focalcodec.acceleration import accelerate
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.cli.demo import DEMO_CLIP
from speechbrain_focalcodec.errors import (
    AudioError,
    CheckpointError,
    ConfigError,
    StreamError,
    TokenError,
)
from speechbrain_focalcodec.onnx import export as onnx_export
from speechbrain_focalcodec.onnx.files import read_facts
from speechbrain_focalcodec.onnx.fourier import (
    InverseRealFourier,
    RealFourier,
)
from speechbrain_focalcodec.onnx.sessions import (
    OnnxStreamingDecoder,
    OnnxStreamingEncoder,
    OnnxStreamingResynthesizer,
)
from speechbrain_focalcodec.utils.files import sha256_of

MINI = "focalcodec_mini_50hz"
OFFLINE = sorted(
    path.parent.name
    for path in PARITY.glob("*/case.json")
    if "causal" not in path.parent.name
)
# Tracing takes many seconds: of the recorded models one here, all when slow.
CASE = "offline_25hz"
TOLERANCE = 1e-4
# Latents nearer to zero than this may round to the other token.
MARGIN = 1e-3


def assert_same_toks(got, want, lats):
    sure = np.asarray(lats.abs().amin(-1) > MARGIN)
    assert got.shape == tuple(want.shape)
    assert sure.mean() > 0.9
    assert np.array_equal(got[sure], np.asarray(want)[sure])


def assert_close(got, want):
    np.testing.assert_allclose(got, np.asarray(want), rtol=0, atol=TOLERANCE)


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


def check_recorded(exported, case):
    expected = load_file(PARITY / case / "expected.safetensors")
    for which in "ab":
        sig, lats, toks, rec_sig = (
            expected[f"{which}.{name}"]
            for name in ("sig", "lats", "toks", "rec_sig")
        )
        got, lengths = exported.encode(sig.numpy())
        assert_same_toks(got, toks, lats)
        assert lengths.tolist() == [toks.shape[1]]
        assert exported.num_tokens(sig.shape[1]) == toks.shape[1]
        rec, lengths = exported.decode(toks.numpy())
        assert_close(rec, rec_sig)
        assert lengths.tolist() == [rec_sig.shape[1]]


# Before anything is traced


def test_all_cases_are_here():
    assert len(OFFLINE) == 7 and CASE in OFFLINE


@torch.no_grad()
@pytest.mark.parametrize("source", [*OFFLINE, MINI])
def test_graphs_compute_what_the_codec_does(source):
    path = PARITY / source
    codec = FocalCodec.from_pretrained(path if path.exists() else source)
    sig = read_audio(DEMO_CLIP, 16000)[0][10000:30000].repeat(4, 1)
    lengths = torch.tensor([20000, 399, 5000, 1])
    lats, _ = codec.feats_to_lats(*codec.sig_to_feats(sig, lengths))
    want, want_lengths = codec.encode(sig, lengths)
    toks, tok_lengths = onnx_export.EncoderGraph(codec)(sig, lengths)
    within = np.arange(want.shape[1]) < want_lengths.numpy()[:, None]
    # What is beyond a length has no latents to be sure of.
    lats[~torch.from_numpy(within)] = 1
    assert_same_toks(toks.numpy(), want, lats)
    assert tok_lengths.equal(want_lengths)
    rec, _ = codec.decode(want, want_lengths)
    sig, sig_lengths = onnx_export.DecoderGraph(codec)(want, want_lengths)
    assert_close(sig, rec)
    assert sig_lengths.tolist() == [
        codec.output_hop_length * n for n in want_lengths.tolist()
    ]


@given(st.integers(1, 200))
def test_transforms_of_any_size(half):
    size = 2 * half
    x = torch.randn(1, 3, size, dtype=torch.float32)
    spectrum = torch.fft.rfft(x)
    forward = RealFourier(size)
    assert_close(forward(x)[..., forward.order], spectrum.abs())
    assert_close(InverseRealFourier(size)(spectrum.real, spectrum.imag), x)


def test_half_causal_models_are_refused(tmp_path):
    codec = FocalCodec.from_pretrained(PARITY / "causal_50hz")
    codec.decoder.causal = False
    with pytest.raises(ValueError, match="causal_50hz is causal in some.*off"):
        onnx_export.export_onnx(codec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_accelerated_models_are_refused(tmp_path):
    codec = accelerate(FocalCodec.from_pretrained(PARITY / CASE), "bf16")
    with pytest.raises(ValueError, match="was accelerated .bf16.*before"):
        onnx_export.export_onnx(codec, tmp_path)


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_export_without_the_extra(library, codec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}.*focalcodec\[onnx\]"):
        onnx_export.export_onnx(codec, tmp_path)


# What is exported


def test_recorded_case(exported):
    check_recorded(exported, CASE)


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 399, 400, 401, 720, 16001])
def test_any_length_in_any_batch(samples, codec, exported):
    sig = torch.randn(3, samples) / 10
    lengths = torch.tensor([samples, 1, -(-samples // 3)])
    lats, _ = codec.feats_to_lats(*codec.sig_to_feats(sig, lengths))
    want, want_lengths = codec.encode(sig, lengths)
    toks, tok_lengths = exported.encode(sig.numpy(), lengths.numpy())
    assert tok_lengths.tolist() == want_lengths.tolist()
    for i, n in enumerate(want_lengths.tolist()):
        sure = (lats[i, :n].abs().amin(-1) > MARGIN).numpy()
        assert np.array_equal(toks[i, :n][sure], want[i, :n].numpy()[sure])
        assert not toks[i, n:].any()
    rec, rec_lengths = exported.decode(want.numpy(), want_lengths.numpy())
    assert_close(rec, codec.decode(want, want_lengths)[0])
    assert rec_lengths.tolist() == [n * 640 for n in want_lengths.tolist()]
    # And each alone.
    for i, n in enumerate(lengths.tolist()):
        alone, _ = exported.encode(sig[i : i + 1, :n].numpy())
        assert np.array_equal(alone[0], toks[i, : alone.shape[1]])
        sig_alone, _ = exported.decode(
            want[i : i + 1, : alone.shape[1]].numpy()
        )
        assert_close(rec[i, : sig_alone.shape[1]], sig_alone[0])


@torch.no_grad()
def test_a_minute(codec, exported):
    """Beyond the 2048 frames whose position bias the published code keeps."""
    sig = torch.randn(1, 60 * 16000) / 10
    lats = codec.feats_to_lats(codec.sig_to_feats(sig))
    assert lats.shape[1] > 1024
    toks, _ = exported.encode(sig.numpy())
    assert_same_toks(toks, codec.lats_to_toks(lats), lats)


@torch.no_grad()
def test_resynthesis(codec, exported):
    sig, lengths = torch.randn(2, 5000) / 10, torch.tensor([5000, 3333])
    want, want_lengths = codec.resynthesize(sig, lengths)
    rec, rec_lengths = exported.resynthesize(sig.numpy(), lengths.numpy())
    assert_close(rec, want)
    assert rec_lengths.tolist() == want_lengths.tolist()
    alone = exported.resynthesize(sig[1:, :3333].numpy())
    assert_close(alone, want[1:, :3333])


def test_facts_are_those_of_the_codec(codec, exported):
    for name in (
        *("name", "fingerprint", "sample_rate_input", "sample_rate_output"),
        *("token_rate", "hop_length", "output_hop_length", "codebook_size"),
        *("bitrate", "causal", "chunk_length", "latency"),
    ):
        assert getattr(exported, name) == getattr(codec, name), name
    for samples in (1, 400, 719, 720, 12345, 10**9):
        assert exported.num_tokens(samples) == codec.num_tokens(samples)
        assert exported.output_num_samples(samples) == (
            codec.output_num_samples(samples)
        )


def test_runs_without_torch(folder):
    code = f"""
import sys
import numpy as np
from speechbrain_focalcodec import OnnxFocalCodec
codec = OnnxFocalCodec({str(folder)!r}, threads=1)
toks, _ = codec.encode(np.zeros((1, 3200), np.float32))
sig, _ = codec.decode(toks)
assert sig.shape == (1, 3200), sig.shape
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_tell_nothing_of_this_machine(folder):
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b"layers.py" not in content
        assert b"site-packages" not in content


def test_long_batches_in_parts_and_long_utterances_not(folder, exported):
    small = OnnxFocalCodec(folder, threads=1, max_seconds=0.5)
    sig = np.random.default_rng(0).normal(0, 0.1, (5, 4000)).astype("f")
    lengths = np.array([4000, 1000, 2000, 4000, 3000])
    want = exported.encode(sig, lengths)
    got = small.encode(sig, lengths)
    assert all(map(np.array_equal, got, want))
    for a, b in zip(small.decode(*got), exported.decode(*got), strict=True):
        assert_close(a, b)
    # Padding does not count.
    sig = np.pad(sig, ((0, 0), (0, 8000)))
    padded = small.encode(sig, lengths)[0]
    assert np.array_equal(padded[:, : want[0].shape[1]], want[0])
    with pytest.raises(AudioError, match="0.8 s is longer.*0.5 s.*max_sec"):
        small.encode(sig)
    with pytest.raises(TokenError, match="longer than one pass"):
        small.decode(np.zeros((1, 14), np.int64))
    assert exported.max_seconds_encode == 60


# Bad input

SIG = np.zeros((2, 500), np.float32)
TOKS = np.zeros((2, 5), np.int64)


@pytest.mark.parametrize(
    ("sig", "lengths", "error", "message"),
    [
        (SIG[0], None, ValueError, r"sig must be an array \[B, T\]"),
        (SIG[:, :0], None, ValueError, "not empty"),
        (SIG.tolist(), None, ValueError, "must be an array"),
        (SIG.astype("int16"), None, ValueError, "floats.*32768"),
        (SIG + np.nan, None, AudioError, "NaN"),
        (SIG + np.inf, None, AudioError, "infinite"),
        (SIG, np.array([1.0, 0.5]), ValueError, "lengths must be an integer"),
        (SIG, np.array([500]), ValueError, r"lengths must have shape \[2\]"),
        (SIG, np.array([500, 0]), ValueError, "lengths must lie in 1..500"),
        (SIG, np.array([501, 1]), ValueError, "lengths must lie in 1..500"),
    ],
)
def test_encode_refuses(sig, lengths, error, message, exported):
    with pytest.raises(error, match=message):
        exported.encode(sig, lengths)


@pytest.mark.parametrize(
    ("toks", "lengths", "error", "message"),
    [
        (TOKS[0], None, ValueError, r"toks must be an array \[B, N\]"),
        (TOKS.astype("f"), None, TokenError, "toks must be integers"),
        (TOKS - 1, None, TokenError, "must lie in 0..31.*another model"),
        (TOKS + 32, None, TokenError, "must lie in 0..31"),
        (TOKS, np.array([6, 5]), ValueError, "tok_lengths must lie in 1..5"),
    ],
)
def test_decode_refuses(toks, lengths, error, message, exported):
    with pytest.raises(error, match=message):
        exported.decode(toks, lengths)


def test_what_is_beyond_a_length_is_not_looked_at(exported):
    sig, lengths = SIG.copy(), np.array([400, 500])
    sig[0, 400:] = np.nan
    want = exported.encode(SIG, lengths)[0]
    assert np.array_equal(exported.encode(sig, lengths)[0], want)
    toks = TOKS.copy()
    toks[0, 3:] = -7
    exported.decode(toks, np.array([3, 5]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be an integer"),
        ({"threads": "2"}, "threads must be an integer"),
        ({"max_seconds": 0}, "max_seconds must be a number"),
        ({"providers": ["AbacusProvider"]}, "AbacusProvider is not in this"),
    ],
)
def test_loading_refuses_options(options, message, folder):
    with pytest.raises(ValueError, match=message):
        OnnxFocalCodec(folder, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: "),
        ({"kind": "online"}, "kind: "),
        ({"surprise": 1}, "surprise: Extra"),
        ({"codebook_size": 33}, "power of two"),
        ({"codebook_size": "32"}, "codebook_size: "),
        ({"convolutions": [[10, 0]]}, "convolutions.0"),
        ({"causal": True}, "no chunks"),
        ({"fingerprint": "../../x"}, "fingerprint: "),
        ({"files": {}}, "files must name decoder.onnx, encoder.onnx"),
        ({"files": {"../encoder.onnx": "0" * 64}}, "files"),
        ({"name": None}, "name: "),
    ],
)
def test_loading_refuses_facts(changes, message, copied):
    path = copied / "onnx.json"
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=f"onnx.json: .*{message}"):
        OnnxFocalCodec(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10**5, "é"])
def test_loading_refuses_what_is_no_json(text, tmp_path):
    (tmp_path / "onnx.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="onnx.json"):
        OnnxFocalCodec(tmp_path)


def test_loading_refuses_damaged_files(copied):
    path = copied / "decoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="decoder.onnx: is not the file"):
        OnnxFocalCodec(copied)
    path.unlink()
    with pytest.raises(CheckpointError, match="decoder.onnx: cannot be read"):
        OnnxFocalCodec(copied)
    (copied / "onnx.json").unlink()
    with pytest.raises(ConfigError, match="not found.*export-onnx"):
        OnnxFocalCodec(copied)


def test_loading_refuses_what_is_no_graph(copied):
    (copied / "encoder.onnx").write_bytes(b"no graph")
    facts = json.loads((copied / "onnx.json").read_text())
    facts["files"]["encoder.onnx"] = sha256_of(copied / "encoder.onnx")
    (copied / "onnx.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="encoder.onnx: onnxruntime"):
        OnnxFocalCodec(copied)


def replace_graph(folder, name, change, *files):
    """Change a graph, and let `onnx.json` name what it is now."""
    graph = onnx.load(folder / name)
    change(graph)
    (folder / name).write_bytes(graph.SerializeToString())
    facts = json.loads((folder / "onnx.json").read_text())
    for file in (name, *files):
        facts["files"][file] = sha256_of(folder / file)
    (folder / "onnx.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("inside", ["initializer", "constant", "subgraph"])
def test_weights_in_an_unlisted_file_are_refused(copied, listed, inside):
    want = OnnxFocalCodec(copied, threads=1).encode(SIG)[0]

    def change(graph):
        tensor = max(graph.graph.initializer, key=lambda x: len(x.raw_data))
        assert tensor.raw_data
        (copied / "weights.bin").write_bytes(tensor.raw_data)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        if inside == "initializer":
            return
        node = onnx.helper.make_node(
            "Constant", [], [tensor.name], value=tensor
        )
        graph.graph.initializer.remove(tensor)
        if inside == "constant":
            graph.graph.node.insert(0, node)
            return
        shape = onnx.helper.make_tensor_value_info(
            tensor.name, 1, list(tensor.dims)
        )
        branch = onnx.helper.make_graph([node], "branch", [], [shape])
        true = onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [1])
        graph.graph.initializer.append(true)
        graph.graph.node.insert(
            0,
            onnx.helper.make_node(
                "If",
                ["yes"],
                [tensor.name],
                then_branch=branch,
                else_branch=branch,
            ),
        )

    replace_graph(
        copied, "encoder.onnx", change, *["weights.bin"] * int(listed)
    )
    if not listed:
        with pytest.raises(CheckpointError, match=r"'weights.bin'.*not list"):
            OnnxFocalCodec(copied, threads=1)
    elif inside == "initializer":
        # Of a constant, onnxruntime takes what is in the file alone.
        got = OnnxFocalCodec(copied, threads=1).encode(SIG)[0]
        assert np.array_equal(got, want)


@pytest.mark.parametrize("content", [b"", b"\x0b", b"\x3a\x7f", b"\xff" * 20])
def test_what_is_no_graph_has_no_weights(content, copied):
    (copied / "encoder.onnx").write_bytes(content)
    facts = json.loads((copied / "onnx.json").read_text())
    facts["files"]["encoder.onnx"] = sha256_of(copied / "encoder.onnx")
    (copied / "onnx.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="encoder.onnx.*cannot load"):
        OnnxFocalCodec(copied)


def rename_input(graph):
    graph.graph.input[0].name = "wave"
    for node in graph.graph.node:
        node.input[:] = ["wave" if x == "sig" else x for x in node.input]


def swap_outputs(graph):
    first = graph.graph.output.pop(0)
    graph.graph.output.append(first)


def drop_output(graph):
    del graph.graph.output[1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (rename_input, "inputs"),
        (swap_outputs, "outputs"),
        (drop_output, "outputs"),
    ],
)
def test_inputs_and_outputs_are_checked(change, what, copied):
    replace_graph(copied, "encoder.onnx", change)
    with pytest.raises(CheckpointError, match=f"encoder.onnx: .* other {what}"):
        OnnxFocalCodec(copied, threads=1)


def test_errors_of_onnxruntime_are_ours(copied):
    def change(graph):
        dim = graph.graph.input[0].type.tensor_type.shape.dim[1]
        dim.dim_value = 777

    replace_graph(copied, "encoder.onnx", change)
    codec = OnnxFocalCodec(copied, threads=1)
    with pytest.raises(CheckpointError, match="onnxruntime cannot run"):
        codec.encode(SIG)


def test_models_pickle(exported):
    loaded = pickle.loads(pickle.dumps(exported))
    assert np.array_equal(loaded.encode(SIG)[0], exported.encode(SIG)[0])


def test_graphs_of_another_model_are_found_out(copied):
    facts = json.loads((copied / "onnx.json").read_text())
    facts["convolutions"][-1] = [1, 4]
    (copied / "onnx.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="gives lengths.*export"):
        OnnxFocalCodec(copied, threads=1).encode(np.tile(SIG, 10))


def test_running_without_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*focalcodec\[onnx\]"):
        OnnxFocalCodec(folder)


@pytest.mark.parametrize(
    "session_class",
    [OnnxStreamingEncoder, OnnxStreamingDecoder, OnnxStreamingResynthesizer],
)
def test_offline_models_name_the_causal_ones(session_class, exported):
    with pytest.raises(StreamError, match="focalcodec_50hz_4k_causal"):
        session_class(exported)


# Writing


def test_a_failed_export_leaves_all_as_it_was(codec, copied, monkeypatch):
    def write(graph, inputs, shapes, names, path, int8):
        if path.name == "decoder.onnx":
            raise KeyboardInterrupt
        path.write_bytes(b"new")

    before = {path: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setattr(onnx_export, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        onnx_export.export_onnx(codec, copied)
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


@pytest.fixture
def quick_export(folder, monkeypatch):
    """What the command calls, without the tracing."""
    calls = []

    def export(codec, out, int8, announce=print):
        announce(CASE)
        calls.append((codec.name, int8))
        shutil.copytree(folder, out, dirs_exist_ok=True)
        return read_facts(out)

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    return calls


def test_command(quick_export, tmp_path):
    args = ["export-onnx", str(tmp_path), "--model", str(PARITY / CASE)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert f"{CASE}, float32 weights" in result.stdout
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "holds an export; give --overwrite" in result.stderr
    result = CliRunner().invoke(app, [*args, "--int8", "--overwrite"])
    assert result.exit_code == 0
    assert quick_export == [(CASE, False), (CASE, True)]


@torch.no_grad()
@pytest.mark.parametrize("option", ["onnx", "onnx+int8"])
def test_benchmarks_take_it_for_an_option(option, codec, quick_export):
    # As for a script that is run: the benchmarks import each other.
    sys.path.append(str(PARITY.parents[1] / "benchmarks"))
    systems = importlib.import_module("systems")
    system = systems.CodecSystem("tiny", lambda: codec, option)
    system.load(torch.device("cpu"))
    assert quick_export == [(CASE, "int8" in option)]
    assert system.stages == ("encode", "decode", systems.WHOLE)
    assert system.prepare("encode", 1.0, 2)()[0].shape == (2, 25)
    assert system.prepare("decode", 1.0, 2)()[0].shape == (2, 16000)
    assert system.prepare(systems.WHOLE, 1.0, 2)().shape == (2, 16000)


# Slow: more models


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in OFFLINE if case != CASE])
def test_other_recorded_cases(case, tmp_path):
    onnx_export.export_onnx(FocalCodec.from_pretrained(PARITY / case), tmp_path)
    check_recorded(OnnxFocalCodec(tmp_path, threads=1), case)


@pytest.mark.slow
@torch.no_grad()
def test_mini_model_on_speech(tmp_path):
    codec = FocalCodec.from_pretrained(MINI)
    sig = read_audio(DEMO_CLIP, 16000)[0][None]
    lats = codec.feats_to_lats(codec.sig_to_feats(sig))
    want = codec.lats_to_toks(lats)
    rec = codec.decode(want)[0]
    sizes = []
    for int8 in (False, True):
        folder = tmp_path / str(int8)
        facts = onnx_export.export_onnx(codec, folder, int8)
        assert facts.weights == ("int8" if int8 else "float32")
        sizes.append(sum(x.stat().st_size for x in folder.iterdir()))
        exported = OnnxFocalCodec(folder, threads=1)
        toks, _ = exported.encode(sig.numpy())
        got, _ = exported.decode(want.numpy())
        if not int8:
            assert_same_toks(toks, want, lats)
            assert_close(got, rec)
            continue
        assert 0.8 < (toks == want.numpy()).mean() < 1
        error = np.square(got - rec.numpy()).mean()
        assert error < 0.1 * rec.square().mean()
        # What runs beside it changes nothing.
        pair = np.concatenate([np.flip(sig.numpy(), 1) * 3, sig.numpy()])
        assert np.array_equal(exported.encode(pair)[0][1], toks[0])
    assert sizes[1] < 0.5 * sizes[0]
