"""Training steps beside those of the published recipes, recorded."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from own_script import load_yaml
from safetensors.torch import load_file
from speechbrain.lobes.models.HifiGAN import HifiganDiscriminator

from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "parity_train"
STAGES = {
    "decoder": "decoder",
    "quantizer": "quantizer",
    "quantizer_8bit": "quantizer",
    "stream_decoder": "stream_decoder",
    "stream_position": "stream_position",
    "stream_encoder": "stream_encoder",
    "stream_quantizer": "stream_quantizer_4k",
    "stream_joint": "stream_joint_4k",
}


def make_teacher(case: Path, folder: Path) -> Path:
    """The model whose encoder is frozen: the teacher, or the case's own."""
    weights = case / "teacher.safetensors"
    if not weights.is_file():
        return case
    config = json.loads((case / "config.json").read_text())
    config["encoder_config"]["causal"] = False
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(weights, folder / "model.safetensors")
    return folder


def write_wavs(case: Path, folder: Path) -> int:
    """A manifest of the case's batch; its size."""
    entries = {}
    for path in sorted((case / "wavs").iterdir()):
        info = soundfile.info(path)
        entries[path.stem] = {
            "wav": f"{{data_root}}/wavs/{path.name}",
            "num_samples": info.frames,
            "sample_rate": info.samplerate,
            "duration": info.duration,
        }
    write_manifest(folder / "train.json", entries)
    return len(entries)


def load_case(case: Path, folder: Path) -> dict:
    """The stage's YAML, for the case's model and batch."""
    yaml = folder / "model.yaml"
    decoder = json.loads((case / "config.json").read_text())["decoder_config"]
    yaml.write_text(
        "codec: !new:speechbrain_focalcodec.codec.FocalCodec\n"
        f"    config: !include:{case / 'config.json'}\n"
        f"decoder: {{hop_length: {decoder.get('hop_length', 320)}}}\n"
    )
    options = {
        "data_folder": case,
        "output_folder": folder / "out",
        "model": f"!include:{yaml}",
        "encoder_source": make_teacher(case, folder / "teacher"),
        # The position embedding starts from the teacher's.
        "start_from": [] if case.name == "stream_position" else case,
        "batch_size": write_wavs(case, folder),
        "number_of_epochs": 3,
        "num_workers": 0,
        "num_samples": 0,
    }
    expected = json.loads((case / "expected.json").read_text())
    if case.name == "stream_decoder":
        # As long as the recorded waveforms.
        options["segment_frames"] = 30
    if "discriminator_seed" in expected:
        # Made below, from the case's seed.
        options["modules"] = "null"
    text = "".join(f"{key}: {value}\n" for key, value in options.items())
    hparams = load_yaml(
        ROOT / "hparams/train" / f"{STAGES[case.name]}.yaml", text
    )
    if "discriminator_seed" in expected:
        torch.manual_seed(expected["discriminator_seed"])
        hparams["modules"] = {"discriminator": HifiganDiscriminator()}
    return hparams


@pytest.mark.parametrize("name", STAGES)
def test_three_steps_are_those_of_the_published_recipe(name, tmp_path):
    case = CASES / name
    hparams = load_case(case, tmp_path)
    dataset = make_dataset(
        tmp_path / "train.json",
        hparams["data_folder"],
        hparams["sample_rate"],
        seed=hparams["seed"],
        **hparams["train_data_options"],
    )
    brain = hparams["brain"](
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True},
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        dataset,
        train_loader_kwargs=hparams["train_loader"],
    )
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    steps = [step for step in steps if step["split"] == "train_epoch"]
    expected = json.loads((case / "expected.json").read_text())
    assert len(steps) == 3
    for step, losses in zip(steps, expected["losses"], strict=True):
        assert step["lr"] == expected["lr"]
        found = {**step, "total": step["loss"]}
        for term, value in losses.items():
            assert found[term] == pytest.approx(value, rel=1e-4), term
    weights = brain.codec.state_dict()
    for key, value in load_file(case / "after.safetensors").items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=2e-4)
