"""What version 0.1.0 wrote can still be loaded, and gives the same numbers.

The files are in tests/earlier; `make.py` there says how they were made, and has
the functions that give the figures. The tests work on a copy in another place,
as if a user had moved the folders.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from earlier import make

from speechbrain_focalcodec import FocalCodec, PretrainedFocalCodec

EXPECTED = json.loads((make.HERE / "expected.json").read_text())


@pytest.fixture(scope="module")
def expected():
    """Figures by name, such as models/offline/toks."""
    with np.load(make.HERE / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return copy_to(tmp_path_factory.mktemp("moved"))


def copy_to(folder: Path) -> Path:
    return Path(shutil.copytree(make.HERE, folder, dirs_exist_ok=True))


@pytest.fixture(autouse=True)
def _there(copied, monkeypatch):
    monkeypatch.chdir(copied)


@pytest.fixture
def check(expected):
    """Compares what is made now with what was made then."""

    def compare(name, made):
        then = {
            key.removeprefix(f"{name}/"): value
            for key, value in expected.items()
            if key.startswith(f"{name}/")
        }
        assert then.keys() == made.keys()
        for key, value in then.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(made[key], value, rtol=0, atol=1e-4)
            else:
                np.testing.assert_array_equal(made[key], value)

    return compare


@pytest.mark.parametrize("name", make.MODELS)
def test_a_model(name, check, tmp_path):
    codec = FocalCodec.from_pretrained(f"models/{name}")
    assert codec.fingerprint == EXPECTED["fingerprints"][name]
    check(f"models/{name}", make.codec_figures(codec))
    cpu = {"device": "cpu"}
    source = f"models/{name}"
    for model in (
        PretrainedFocalCodec.from_pretrained(source, run_opts=cpu),
        PretrainedFocalCodec.from_hparams(
            source, savedir=tmp_path, run_opts=cpu
        ),
    ):
        assert model.fingerprint == codec.fingerprint
        check(f"models/{name}", make.codec_figures(model.codec))


@pytest.mark.parametrize("name", make.MODELS)
def test_an_onnx_export(name, check):
    check(f"onnx/{name}", make.onnx_figures(name))


@pytest.mark.parametrize("name", make.TOKEN_FILES)
def test_a_token_file(name, check, tmp_path):
    check(f"tokens/{name}", make.decoded_file(name, tmp_path))


def test_a_token_dataset(check):
    check("token_dataset", make.dataset_figures())


def test_a_voice_reference(check):
    check("voice", make.converted())


@pytest.mark.parametrize("kind", make.TASKS)
def test_a_trained_task(kind, check, tmp_path):
    check(f"tasks/{kind}", make.task_figures(make.trained_task(kind)))
    front_end = {"codec": "models/offline"}
    task = make.TASKS[kind].from_hparams(
        f"runs/{kind}/model",
        savedir=tmp_path,
        run_opts={"device": "cpu"},
        overrides={"task": {"config": {"front_end": front_end}}},
    )
    check(f"tasks/{kind}", make.task_figures(task))


@pytest.mark.parametrize("kind", make.RUNS["stages"])
def test_a_run_is_exported(kind, check, tmp_path):
    check(f"export/{kind}", make.exported(kind, tmp_path))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """All runs, trained for one more epoch: a folder, and errors by kind."""
    folder = copy_to(tmp_path_factory.mktemp("resumed"))
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, make.train(make.RESUMED, 2, data)


@pytest.mark.parametrize("kind", make.RESUMED)
def test_a_run_is_resumed(kind, resumed, monkeypatch):
    folder, errors = resumed
    assert kind not in errors, errors[kind]
    monkeypatch.chdir(folder)
    then = EXPECTED["validations"][kind]
    for made, line in zip(make.validations(kind), then, strict=True):
        assert made == pytest.approx(line, rel=1e-4)
