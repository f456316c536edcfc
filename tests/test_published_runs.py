"""Output folders and manifests of the published SpeechBrain recipes."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from make_corpus import make_corpus
from speechbrain.utils.checkpoints import Checkpointer
from typer.testing import CliRunner

from speechbrain_focalcodec.checkpoint import read_weights
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.corpora import prepare_folder
from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from speechbrain_focalcodec.training.entry import prepare_manifests
from speechbrain_focalcodec.training.export import export_runs
from speechbrain_focalcodec.training.sources import (
    find_sources,
    load_module,
    load_parts,
)

PARITY = Path(__file__).parent / "parity"
OFFLINE = PARITY / "offline_50hz"
# Parts of a codec, and the files of the recipes that hold them.
PARTS = {
    "decoder": "generator",
    "compressor": "compressor",
    "decompressor": "decompressor",
}
CLASSES = {
    "encoder": "focalcodec.wavlm.WavLM",
    "compressor": "focalcodec.focalnet.FocalEncoder",
    "decompressor": "focalcodec.focalnet.FocalDecoder",
    "generator": "focalcodec.vocos.Vocos",
}


class Weights(torch.nn.Module):
    """A module that SpeechBrain's checkpointer saves."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def state_dict(self):
        return self.weights


def weights_of(model: Path, part: str) -> dict[str, torch.Tensor]:
    found = read_weights(model / "model.safetensors")
    return {
        key.removeprefix(f"{part}."): value
        for key, value in found.items()
        if key.startswith(f"{part}.")
    }


def save(folder: Path, files: dict, meta: dict) -> Path:
    """A checkpoint, written by SpeechBrain."""
    modules = {name: Weights(weights) for name, weights in files.items()}
    (folder / "save").mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(folder / "save", modules)
    return checkpointer.save_checkpoint(meta).path


def write_hyperparams(folder: Path, model: Path, names=tuple(CLASSES)) -> None:
    """As SpeechBrain leaves it: references are resolved, tags are there."""
    config = json.loads((model / "config.json").read_text())
    lines = ["seed: 0", "__set_seed: !apply:os.mkdir [MARKER]"]
    for name in names:
        role = "decoder" if name == "generator" else name
        options = json.dumps(config[f"{role}_config"])
        lines.append(f"{name}: !new:{CLASSES[name]} {options}")
    code_dim = config["quantizer_config"]["codebook_size"].bit_length() - 1
    lines.append(
        "quantizer: !new:speechbrain.lobes.models.bsq"
        f".BinarySphericalQuantizer {{code_dim: {code_dim}}}"
    )
    (folder / "hyperparams.yaml").write_text("\n".join(lines) + "\n")


def make_runs(folder: Path, model: Path, hyperparams=True) -> list[Path]:
    """A decoder's and a quantizer's output folder, with worse checkpoints."""
    runs = [folder / "vocos", folder / "bsq"]
    decoder = {"generator": weights_of(model, "decoder")}
    decoder["discriminator"] = {"weight": torch.ones(2)}
    bottleneck = {
        name: weights_of(model, name) for name in ("compressor", "decompressor")
    }

    def worse(files):
        return {
            name: {key: x + 1 for key, x in weights.items()}
            for name, weights in files.items()
        }

    # Of a decoder the last epoch is best, whatever its loss.
    save(runs[0], worse(decoder), {"epoch": 1, "loss": 1.0})
    save(runs[0], decoder, {"epoch": 3, "loss": 9.0})
    save(runs[0], worse(decoder), {"epoch": 2, "loss": 0.5})
    save(runs[0], worse(decoder), {})  # made within an epoch
    save(runs[1], worse(bottleneck), {"loss": -0.1})
    save(runs[1], bottleneck, {"loss": -0.5})
    save(runs[1], worse(bottleneck), {"loss": 0.5})
    if hyperparams:
        write_hyperparams(runs[0], model, ["encoder", "generator"])
        write_hyperparams(runs[1], model)
    return runs


def same_model(found: FocalCodec, model: Path) -> None:
    wanted = FocalCodec.from_pretrained(model)
    assert found.config == wanted.config
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["offline_50hz", "v001_50hz"])
@pytest.mark.parametrize("hyperparams", [True, False])
def test_export_joins_published_runs(name, hyperparams, tmp_path, monkeypatch):
    """Of both state-dict formats; options come from the encoder's model too."""
    monkeypatch.chdir(tmp_path)
    model = PARITY / name
    runs = make_runs(tmp_path, model, hyperparams)
    arguments = ["export", tmp_path / "out", *runs, "--encoder", model]
    result = CliRunner().invoke(app, [str(x) for x in arguments])
    assert result.exit_code == 0, result.output
    same_model(FocalCodec.from_pretrained(tmp_path / "out"), model)
    # Nothing that the YAML names was run.
    assert not (tmp_path / "MARKER").exists()


def test_a_stage_goes_on_with_a_published_decoder(tmp_path):
    runs = make_runs(tmp_path, OFFLINE)
    sources = find_sources(runs)
    assert [source.parts for source in sources] == [
        ["decoder"],
        ["compressor", "decompressor"],
    ]
    codec = FocalCodec.from_config(sources[1].config | sources[0].config)
    assert sorted(load_parts(codec, sources)) == sorted(PARTS)
    for part in PARTS:
        for key, value in weights_of(OFFLINE, part).items():
            assert torch.equal(
                codec.get_submodule(part).state_dict()[key], value
            )
    discriminator = torch.nn.Module()
    discriminator.weight = torch.nn.Parameter(torch.zeros(2))
    assert load_module(discriminator, sources) is sources[0]
    assert discriminator.weight.tolist() == [1.0, 1.0]


def test_a_streaming_encoder_and_its_position_embedding(tmp_path):
    model = PARITY / "causal_50hz"
    encoder = weights_of(model, "encoder")
    position = {
        key.removeprefix("encoder.positional_embedding."): value
        for key, value in encoder.items()
        if key.startswith("encoder.positional_embedding.")
    }
    save(tmp_path / "position", {"student_posemb": position}, {"loss": 1.0})
    save(tmp_path / "encoder", {"student_encoder": encoder}, {"loss": 1.0})
    config = json.loads((model / "config.json").read_text())
    codec = FocalCodec.from_config(config)
    [source] = find_sources(tmp_path / "position")
    assert list(load_parts(codec, [source])) == ["positional_embedding"]
    found = codec.encoder.encoder.positional_embedding.state_dict()
    assert all(torch.equal(found[key], x) for key, x in position.items())
    load_parts(codec, find_sources(tmp_path / "encoder"), ["encoder"])
    found = codec.encoder.state_dict()
    assert all(torch.equal(found[key], x) for key, x in encoder.items())


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("MARKER"),)


def test_published_runs_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = make_runs(tmp_path, OFFLINE)
    codec = FocalCodec.from_pretrained(PARITY / "offline_25hz")
    with pytest.raises(CheckpointError, match="bsq: its compressor with down"):
        load_parts(codec, find_sources(runs[1]))
    (runs[1] / "hyperparams.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"bsq \(compressor\): .*shape"):
        load_parts(codec, find_sources(runs[1]))
    with pytest.raises(CheckpointError, match="bsq: has no hyperparams.yaml"):
        export_runs(tmp_path / "out", runs)
    with pytest.raises(CheckpointError, match="no trained decompressor"):
        load_parts(codec, find_sources(runs[0]), ["decompressor"])
    # A pickle that would run something.
    [chosen] = find_sources(runs[0])
    path = chosen.folder / "generator.ckpt"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="generator.ckpt: cannot be read"):
        load_parts(FocalCodec.from_pretrained(OFFLINE), [chosen])
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="is no table of weights"):
        load_parts(FocalCodec.from_pretrained(OFFLINE), [chosen])
    # A checkpoint's YAML that would.
    for meta in (runs[0] / "save").glob("CKPT*/CKPT.yaml"):
        meta.write_text("epoch: !!python/object/apply:os.mkdir [MARKER]\n")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        find_sources(runs[0])
    (runs[1] / "hyperparams.yaml").write_text(
        "compressor: !new:focalcodec.focalnet.FocalEncoder\n"
        "    input_dim: !ref <encoder_dim>\n"
        "other: !apply:os.mkdir [MARKER]\n"
    )
    with pytest.raises(ConfigError, match="compressor.input_dim: is no value"):
        find_sources(runs[1])
    assert not (tmp_path / "MARKER").exists()
    save(tmp_path / "other", {"model": {}}, {"loss": 1.0})
    with pytest.raises(CheckpointError, match="has no part of a codec"):
        find_sources(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "save")
    (tmp_path / "other" / "save").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_sources(tmp_path / "other")


@pytest.fixture
def recipe(tmp_path):
    """Manifests as the recipes' preparation writes them; data hparams."""
    data = make_corpus("Folder", tmp_path / "data", ["a", "b"], duration=0.3)
    (tmp_path / "old").mkdir()
    paths = []
    for split, name in (("a", "train"), ("b", "valid")):
        prepare_folder(data, tmp_path / "ours", [split])
        entries = read_manifest(tmp_path / "ours" / f"{split}.json")
        paths.append(str(tmp_path / "old" / f"{name}.json"))
        Path(paths[-1]).write_text(
            json.dumps(
                {
                    utt_id: {
                        "uttid": utt_id,
                        "wav": entry["wav"],
                        "duration": entry["duration"],
                        "spk_id": "s",
                        "label": "A {WORD",
                        "segment": True,
                    }
                    for utt_id, entry in entries.items()
                }
            )
        )
    return paths, {
        "data_folder": str(data),
        "save_folder": str(tmp_path / "save"),
        "train_splits": paths[:1],
        "valid_splits": paths[1:],
        "num_valid": 0,
        "seed": 1,
    }


def test_manifests_of_the_recipes_are_data(recipe, tmp_path):
    paths, hparams = recipe
    (tmp_path / "save").mkdir()
    prepare_manifests(prepare_folder, hparams)
    for path, name in zip(paths, ("train", "valid"), strict=True):
        wanted = json.loads(Path(path).read_text())
        manifest = tmp_path / "save" / f"{name}.json"
        dataset = make_dataset(manifest, hparams["data_folder"], 16000)
        assert {item["id"] for item in dataset} == set(wanted)
    # Beside splits that are prepared.
    hparams["valid_splits"] = ["b"]
    prepare_manifests(prepare_folder, hparams)
    assert len(read_manifest(tmp_path / "save" / "valid.json")) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda entry: entry.pop("wav"), "of .*train.json lacks wav"),
        (
            lambda entry: entry.update(wav="{data_root}/gone.wav"),
            "train.json: .*gone.wav.*data_root",
        ),
        (lambda entry: entry.update(wav="{other}/a.wav"), "other.*data_root"),
    ],
)
def test_manifests_that_do_not_fit_are_named(recipe, tmp_path, change, message):
    paths, hparams = recipe
    (tmp_path / "save").mkdir()
    entries = json.loads(Path(paths[0]).read_text())
    change(next(iter(entries.values())))
    Path(paths[0]).write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        prepare_manifests(prepare_folder, hparams)
