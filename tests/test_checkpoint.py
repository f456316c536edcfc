"""Models on disk: strict loading, both formats, whole writes, identity."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechbrain_focalcodec import FocalCodec, checkpoint, model_files
from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.utils import files as atomic

PARITY = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in PARITY.glob("*/config.json"))
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of a model in the newer format, to be damaged."""
    return copy("offline_50hz", tmp_path / "model")


def copy(case, folder):
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(PARITY / case / name, folder / name)
    return folder


def change(folder, **changes):
    """Replace weights of a folder; None removes one."""
    weights = load_file(folder / WEIGHTS) | changes
    kept = {k: v.contiguous() for k, v in weights.items() if v is not None}
    save_file(kept, folder / WEIGHTS)


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        FocalCodec.from_pretrained(folder)
    assert str(folder / WEIGHTS) in str(caught.value)
    return str(caught.value)


def noise(*shape):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(*shape, generator=generator)


def tokens(codec):
    with torch.inference_mode():
        return codec.encode(noise(2, 8000))[0]


# Strictness

SOME = "compressor.out_proj.weight"


def test_a_missing_weight_is_named(folder):
    change(folder, **{SOME: None})
    assert f"missing weight: {SOME}" in refused(folder)


def test_an_unexpected_weight_is_named(folder):
    change(folder, **{"backdoor.weight": torch.zeros(3)})
    assert "unexpected weight: backdoor.weight" in refused(folder)


@pytest.mark.parametrize("shape", [(5,), (8, 5), (5, 8, 1), ()])
def test_a_weight_of_another_shape_is_named(folder, shape):
    change(folder, **{SOME: torch.zeros(shape)})
    message = refused(folder)
    assert f"wrong shape: {SOME} is {list(shape)}" in message
    assert "needs [5, 8]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder, value):
    weight = load_file(folder / WEIGHTS)[SOME]
    weight[1, 2] = value
    change(folder, **{SOME: weight})
    assert f"NaN or infinite weight: {SOME}" in refused(folder)


def test_a_weight_that_overflows_in_the_cast_is_named(folder):
    change(folder, **{SOME: torch.full((5, 8), 1e300, dtype=torch.float64)})
    assert f"NaN or infinite weight: {SOME}" in refused(folder)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_a_weight_that_is_no_real_number_is_named(folder, dtype):
    change(folder, **{SOME: torch.ones(5, 8, dtype=dtype)})
    assert f"wrong type: {SOME} is {dtype}" in refused(folder)


def test_all_problems_are_counted(folder):
    (folder / CONFIG).write_text((PARITY / "causal_50hz" / CONFIG).read_text())
    message = refused(folder)
    assert "missing weight: " in message and "unexpected weight: " in message
    assert " more)" in message


def test_a_weight_in_both_formats_is_refused(folder):
    old = "compressor.layers.0.1.modulation.in_proj.bias"
    new = "compressor.layers.0.focal_block.modulation.in_proj.bias"
    change(folder, **{old: load_file(folder / WEIGHTS)[new]})
    assert f"{old} and {new} are the same weight" in refused(folder)


def test_joined_and_separate_projections_are_refused(folder):
    prefix = "encoder.encoder.layers.0.attention"
    changes = {f"{prefix}.{x}_proj.bias": torch.zeros(32) for x in "qkv"}
    change(folder, **changes)
    message = refused(folder)
    assert f"{prefix}.qkv_proj.bias are the same weight" in message


@pytest.mark.parametrize("letter", "qkv")
def test_a_missing_projection_of_the_old_format_is_named(tmp_path, letter):
    folder = copy("v001_50hz", tmp_path / "model")
    name = f"encoder.encoder.layers.1.attention.{letter}_proj.weight"
    change(folder, **{name: None})
    assert f"missing weight: {name}" in refused(folder)


@pytest.mark.parametrize("shape", [(32, 31), (3, 32), (32,), ()])
def test_projections_that_do_not_fit_each_other_are_named(tmp_path, shape):
    folder = copy("v001_50hz", tmp_path / "model")
    name = "encoder.encoder.layers.1.attention.k_proj.weight"
    change(folder, **{name: torch.zeros(shape)})
    message = refused(folder)
    assert "wrong shape: " in message and name in message


# Damaged and malicious files


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 10_000, 384_019])
def test_a_truncated_file_is_refused(folder, size):
    os.truncate(folder / WEIGHTS, size)
    assert "no readable safetensors file" in refused(folder)


@pytest.mark.parametrize(
    "content", [b"garbage" * 100, b"\xff" * 100, b"\x00" * 100, b"{}" * 50]
)
def test_garbage_is_refused(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    assert "no readable safetensors file" in refused(folder)


def with_header(entries, size):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + b"\x01" * size


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 500, "data_offsets": [0, 4]},
        {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]},
    ],
)
def test_an_absurd_header_is_refused(folder, entry):
    size = entry["data_offsets"][1]
    (folder / WEIGHTS).write_bytes(with_header({SOME: entry}, size))
    refused(folder)
    try:  # PyTorch has some of these types; others are our error
        checkpoint.read_weights(folder / WEIGHTS)
    except CheckpointError as error:
        assert str(folder / WEIGHTS) in str(error)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file({"a": torch.ones(3, 2), "b.c": torch.zeros(4)}, path)
    return path.read_bytes()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data(), device=st.sampled_from(["cpu", "meta"]))
def test_any_bytes_are_tensors_or_a_checkpoint_error(
    tmp_path_factory, small_file, data, device
):
    content = bytearray(small_file)
    places = st.integers(0, len(content) - 1)
    changes = st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)
    for place, byte in data.draw(changes):
        content[place] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content[: data.draw(places) + 1])
    try:
        weights = checkpoint.read_weights(path, device=device)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert sum(w.numel() for w in weights.values()) <= len(content)


@pytest.mark.parametrize(
    ("name", "error"), [(CONFIG, ConfigError), (WEIGHTS, CheckpointError)]
)
def test_a_missing_file_is_named(folder, name, error):
    (folder / name).unlink()
    with pytest.raises(error, match=f"{name}: not found"):
        FocalCodec.from_pretrained(folder)


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def dump(attack, path):
    path.write_bytes(pickle.dumps({SOME: attack}))
    pickle.loads(path.read_bytes())


def dump_torch(attack, path):
    torch.save({SOME: attack}, path)
    # As a stream: by the suffix of a path, PyTorch would read safetensors.
    with open(path, "rb") as stream:
        torch.load(stream, weights_only=False)


@pytest.mark.parametrize("dump_and_load", [dump, dump_torch])
def test_a_pickle_is_never_loaded(folder, tmp_path, dump_and_load):
    marker = tmp_path / "marker"
    dump_and_load(Attack(marker), folder / WEIGHTS)
    assert marker.exists()  # the attack works
    marker.unlink()
    assert "no readable safetensors file" in refused(folder)
    # nor is there another file to fall back to
    shutil.move(folder / WEIGHTS, folder / "pytorch_model.bin")
    assert "not found" in refused(folder)
    assert not marker.exists()


def test_other_files_of_a_folder_are_ignored(folder, tmp_path):
    marker = tmp_path / "marker"
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        dump_torch(Attack(marker), folder / name)
    marker.unlink()
    (folder / "hyperparams.yaml").write_text(
        f"codec: !apply:os.system ['touch {marker}']\n"
    )
    (folder / "codec.py").write_text(f"open({str(marker)!r}, 'w')\n")
    FocalCodec.from_pretrained(folder)
    assert not marker.exists()


# Both formats


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_the_same_after_saving_and_loading(tmp_path, case):
    codec = FocalCodec.from_pretrained(PARITY / case)
    assert codec.name == case and not codec.training
    codec.save_pretrained(tmp_path / "saved")
    loaded = FocalCodec.from_pretrained(tmp_path / "saved")
    assert loaded.config == codec.config
    assert loaded.fingerprint == codec.fingerprint
    assert torch.equal(tokens(loaded), tokens(codec))
    assert sorted(os.listdir(tmp_path / "saved")) == [CONFIG, WEIGHTS]


def layout(folder):
    with safe_open(folder / WEIGHTS, "pt") as stream:
        weights = {
            name: (
                stream.get_slice(name).get_shape(),
                stream.get_slice(name).get_dtype(),
            )
            for name in stream.keys()
        }
        metadata = stream.metadata()
    return weights, metadata, json.loads((folder / CONFIG).read_text())


def test_the_old_format_is_saved_in_the_new_one(tmp_path):
    codec = FocalCodec.from_pretrained(PARITY / "v001_50hz")
    codec.save_pretrained(tmp_path)
    weights, metadata, config = layout(tmp_path)
    expected_weights, _, expected_config = layout(PARITY / "offline_50hz")
    assert weights == expected_weights
    assert metadata == {"format": "pt"}
    assert config == expected_config


def test_weights_are_loaded_into_an_existing_codec():
    path = PARITY / "v001_50hz"
    codec = FocalCodec.from_config(json.loads((path / CONFIG).read_text()))
    checkpoint.load_weights(codec, path / WEIGHTS)
    assert codec.fingerprint == FocalCodec.from_pretrained(path).fingerprint


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_other_precisions_are_cast(folder, dtype):
    weights = {
        name: value.to(dtype)
        for name, value in load_file(folder / WEIGHTS).items()
    }
    save_file(weights, folder / WEIGHTS)
    codec = FocalCodec.from_pretrained(folder)
    for name, value in codec.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].float())
    assert tokens(codec).shape == (2, 24)


# Whole writes


class Interrupt(BaseException):
    pass


def changed_model():
    """A model of other sizes than offline_50hz, and so of other weights."""
    return FocalCodec.from_pretrained(PARITY / "offline_12_5hz")


def interrupt_at(monkeypatch, call):
    """Fail at the given call of os.replace."""
    calls = []

    def replace(source, target):
        calls.append(target)
        if len(calls) > call:
            raise Interrupt
        os.rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    return calls


@pytest.mark.parametrize("call", [0, 1])
def test_an_interrupted_first_save_leaves_no_model(tmp_path, monkeypatch, call):
    codec = changed_model()
    interrupt_at(monkeypatch, call)
    with pytest.raises(Interrupt):
        codec.save_pretrained(tmp_path)
    assert CONFIG not in os.listdir(tmp_path)
    with pytest.raises(ConfigError, match="config.json: not found"):
        FocalCodec.from_pretrained(tmp_path)


@pytest.mark.parametrize("call", [0, 1])
def test_an_interrupted_save_mixes_no_models(folder, monkeypatch, call):
    codec = changed_model()
    interrupt_at(monkeypatch, call)
    with pytest.raises(Interrupt):
        codec.save_pretrained(folder)
    left = set(os.listdir(folder))
    assert left <= {WEIGHTS}  # no temporary file, and no config.json
    monkeypatch.undo()
    codec.save_pretrained(folder)
    assert FocalCodec.from_pretrained(folder).fingerprint == codec.fingerprint


def test_a_save_is_two_moves_and_the_configuration_is_the_last(
    folder, monkeypatch
):
    calls = interrupt_at(monkeypatch, 2)
    changed_model().save_pretrained(folder)
    assert calls == [folder / WEIGHTS, folder / CONFIG]


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    before = FocalCodec.from_pretrained(folder).fingerprint

    def save_half(weights, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(OSError, match="No space"):
        changed_model().save_pretrained(folder)
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    assert FocalCodec.from_pretrained(folder).fingerprint == before


def test_a_model_can_be_saved_over_itself(folder):
    codec = FocalCodec.from_pretrained(folder)
    codec.save_pretrained(folder)
    loaded = FocalCodec.from_pretrained(folder)
    assert loaded.fingerprint == codec.fingerprint


# Identity


def test_the_fingerprint_is_that_of_configuration_and_weights():
    load = FocalCodec.from_pretrained
    first = load(PARITY / "offline_50hz").fingerprint
    assert len(first) == 64 and int(first, 16) > 0
    assert load(PARITY / "offline_50hz").fingerprint == first
    others = {load(PARITY / case).fingerprint for case in CASES}
    assert len(others) == len(CASES) and first in others


def test_the_fingerprint_changes_with_one_number():
    codec = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    before = codec.fingerprint
    with torch.no_grad():
        codec.decoder.head.proj.bias[3] += 1e-6
    assert codec.fingerprint != before


def test_the_fingerprint_changes_with_the_configuration(folder):
    before = FocalCodec.from_pretrained(folder).fingerprint
    data = json.loads((folder / CONFIG).read_text())
    data["encoder_config"]["max_distance"] = 65  # shows in no shape
    (folder / CONFIG).write_text(json.dumps(data))
    assert FocalCodec.from_pretrained(folder).fingerprint != before


def test_the_fingerprint_does_not_depend_on_spelling(folder):
    """A default may be written out, and keys may come in any order."""
    before = FocalCodec.from_pretrained(folder).fingerprint
    data = json.loads((folder / CONFIG).read_text())
    data["encoder_config"]["dropout"] = 0
    data["compressor_config"]["causal"] = False
    (folder / CONFIG).write_text(json.dumps(data, sort_keys=True))
    assert FocalCodec.from_pretrained(folder).fingerprint == before


# Sources


@pytest.mark.parametrize(
    "source",
    [
        "focalcodec_nano_50hz",
        "a/b/c",
        "/no/such/folder",
        "~no-such-user/model",
        "https://example.com/model",
        "owner/na me",
        "nul\0",
        Path("owner/name"),
    ],
)
def test_an_unknown_source_is_named(source):
    with pytest.raises(CheckpointError) as caught:
        FocalCodec.from_pretrained(source)
    message = str(caught.value)
    assert repr(str(source)) in message
    assert "neither a folder, nor a hub repository" in message
    assert str(model_files.bundled_models()) in message


def test_a_folder_is_found_by_any_path(folder, monkeypatch):
    expected = FocalCodec.from_pretrained(folder).fingerprint
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for source in ("model", "./model", "~/model", Path("model"), f"{folder}/"):
        codec = FocalCodec.from_pretrained(source)
        assert codec.fingerprint == expected and codec.name == "model"


def test_a_bundled_model_is_found_by_its_name(folder, monkeypatch):
    monkeypatch.setattr(model_files, "BUNDLED_MODELS", folder.parent)
    assert model_files.bundled_models() == ["model"]
    assert FocalCodec.from_pretrained("model").name == "model"
