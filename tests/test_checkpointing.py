"""Checkpoints: kills, damage, and all that a resumed run needs."""

import json
import logging
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from test_training import CONFIG
from tiny_training import NoisyBrain, train, write_corpus

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import CheckpointError
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.training.random_state import RandomState
from speechbrain_focalcodec.training.sources import find_sources, load_parts

FILES = ["CKPT.yaml", "MANIFEST.json", "model.ckpt", "random_state.ckpt"]
OFTEN = {"run_opts": {"ckpt_interval_steps": 1}}


def make_checkpointer(folder):
    model = torch.nn.Linear(1, 1)
    recoverables = {"model": model, "random_state": RandomState()}
    return AtomicCheckpointer(folder, recoverables), model


def save(checkpointer, value, keep=True, **meta):
    with torch.no_grad():
        checkpointer.recoverables["model"].weight.fill_(value)
    if keep:
        checkpointer.save_and_keep_only(meta=meta, min_keys=["loss"])
        return None
    return checkpointer.save_checkpoint(meta=meta)


def recovered(folder) -> float:
    checkpointer, model = make_checkpointer(folder)
    assert checkpointer.recover_if_possible() is not None
    return model.weight.item()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:half])
    else:
        flipped = bytes([data[half] ^ 1])
        path.write_bytes(data[:half] + flipped + data[half + 1 :])


def folders(folder: Path, prefix: str = "CKPT") -> list[Path]:
    return sorted(folder.glob(f"{prefix}*"))


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_skipped(tmp_path, caplog, name, how):
    checkpointer, _ = make_checkpointer(tmp_path)
    older, newest = (save(checkpointer, i, False, loss=i) for i in (2.0, 1.0))
    assert sorted(path.name for path in newest.path.iterdir()) == FILES
    damage(newest.path / name, how)
    with caplog.at_level(logging.WARNING):
        assert recovered(tmp_path) == 2.0
    assert str(newest.path / name) in caplog.text or name == "MANIFEST.json"
    assert str(newest.path) in caplog.text
    best = make_checkpointer(tmp_path)[0].find_checkpoint(min_key="loss")
    assert best == older
    damage(older.path / name, how)
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        recovered(tmp_path)
    # Whoever can mend them finds them.
    assert folders(tmp_path) == [older.path, newest.path]


def test_a_checkpoint_without_a_manifest_is_used(tmp_path):
    """As versions before it wrote them."""
    checkpointer, _ = make_checkpointer(tmp_path)
    saved = save(checkpointer, 3.0, False)
    (saved.path / "MANIFEST.json").unlink()
    meta = saved.path / "CKPT.yaml"
    meta.write_text(meta.read_text().replace("manifest: true\n", ""))
    assert recovered(tmp_path) == 3.0


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert make_checkpointer(tmp_path)[0].recover_if_possible() is None


def test_kept_checkpoints(tmp_path):
    """The best, the latest, and one before it."""
    checkpointer, _ = make_checkpointer(tmp_path)
    for loss in (3.0, 1.0, 4.0, 2.0, 5.0):
        save(checkpointer, loss, loss=loss)
    kept = [c.meta["loss"] for c in checkpointer.find_checkpoints()]
    assert kept == [5.0, 2.0, 1.0]
    # What is known to be damaged counts for nothing, and stays.
    damaged = checkpointer.find_checkpoint().path
    damage(damaged / "model.ckpt", "flipped")
    assert checkpointer.find_checkpoint().meta["loss"] == 2.0
    for loss in (6.0, 7.0):
        save(checkpointer, loss, loss=loss)
    kept = [c.meta["loss"] for c in checkpointer.find_checkpoints()]
    assert kept == [7.0, 6.0, 5.0, 1.0]
    checkpointer.delete_checkpoints(num_to_keep=0)
    assert folders(tmp_path) == [damaged]
    with pytest.raises(ValueError, match="num_to_keep"):
        checkpointer.delete_checkpoints(num_to_keep=-1)


def test_export_skips_a_damaged_checkpoint(tmp_path):
    good, bad = FocalCodec.from_config(CONFIG), FocalCodec.from_config(CONFIG)
    for codec, loss in ((good, 2.0), (bad, 1.0)):
        saved = AtomicCheckpointer(
            tmp_path / "save", {"decoder": codec.decoder}
        ).save_checkpoint(meta={"loss": loss})
    damage(saved.path / "decoder.ckpt", "flipped")
    text = json.dumps(good.config.to_dict())
    (tmp_path / "config.json").write_text(text)
    codec = FocalCodec.from_config(CONFIG)
    load_parts(codec, find_sources(tmp_path))
    for name, value in good.decoder.state_dict().items():
        assert torch.equal(codec.decoder.state_dict()[name], value)
    for folder in folders(tmp_path / "save"):
        damage(folder / "decoder.ckpt", "truncated")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        find_sources(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    """Do not flush: only kills are simulated, no power cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def killed_at(operation: int, function) -> bool:
    """Run in a process that is killed at its n-th operation on files."""
    pid = os.fork()
    if not pid:
        count = 0

        def step(*args):
            nonlocal count
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event, args):
            if event == "open" or event.startswith(("os.", "shutil.")):
                step()

        try:
            os.fsync = step
            sys.addaudithook(audit)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_kill_while_saving_and_deleting_leaves_whole_checkpoints(tmp_path):
    """At each operation on files, by SIGKILL."""
    start = tmp_path / "start"
    checkpointer, _ = make_checkpointer(start)
    for value in (1.0, 2.0):
        save(checkpointer, value)
    seen = {}
    operation = 0
    while True:
        operation += 1
        folder = tmp_path / str(operation)
        shutil.copytree(start, folder)
        killed, _ = make_checkpointer(folder)
        if not killed_at(operation, partial(save, killed, 3.0)):
            break
        left = [len(folders(folder, p)) for p in ("CKPT", "UNF", "DEL")]
        for path in folders(folder):
            assert sorted(file.name for file in path.iterdir()) == FILES
        value = recovered(folder)
        assert value in (2.0, 3.0)
        seen[value, tuple(left)] = operation
        save(make_checkpointer(folder)[0], 4.0)
        assert recovered(folder) == 4.0
        assert len(list(folder.iterdir())) == len(folders(folder)) == 2
    # Before, within and after saving; before, within and after deleting.
    assert set(seen) == {
        (2.0, (2, 0, 0)),
        (2.0, (2, 1, 0)),
        (3.0, (3, 0, 0)),
        (3.0, (2, 0, 1)),
    }
    assert operation > 20


def test_a_gradient_scaler_is_recovered(tmp_path):
    """Brains add theirs in fp16, which wants a GPU."""
    scaler = torch.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaler.update(8.0)
    AtomicCheckpointer(tmp_path, {"scaler": scaler}).save_checkpoint()
    other = torch.GradScaler("cpu")
    AtomicCheckpointer(tmp_path, {"scaler": other}).recover_if_possible()
    assert other.get_scale() == 8.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The curve of a run without a break."""
    folder = tmp_path_factory.mktemp("whole")
    return train(NoisyBrain, corpus, folder, epochs=3, **OFTEN)


@pytest.mark.parametrize("kill_at", [(1, 2), (2, 1), (3, 2)])
def test_random_numbers_resume(corpus, whole, tmp_path, kill_at):
    """Also where the run is killed within an epoch."""
    parts = train(NoisyBrain, corpus, tmp_path, kill_at, epochs=3, **OFTEN)
    parts += train(NoisyBrain, corpus, tmp_path, epochs=3, **OFTEN)
    assert len(whole) == 3
    assert parts == whole


def test_training_resumes_before_the_damage(corpus, whole, tmp_path):
    parts = train(NoisyBrain, corpus, tmp_path, epochs=2, **OFTEN)
    save_folder = tmp_path / "save"
    newest = AtomicCheckpointer(save_folder).find_checkpoint()
    for path in newest.path.glob("optimizer.ckpt"):
        damage(path, "flipped")
    again = train(NoisyBrain, corpus, tmp_path, epochs=3, **OFTEN)
    # It went back to within the second epoch, and ended that once more.
    assert [line["meta"]["epoch"] for line in again] == [2, 3]
    assert parts[:1] + again == whole
    assert newest.path.is_dir()


def test_a_checkpoint_of_before_random_states_is_resumed(corpus, tmp_path):
    train(NoisyBrain, corpus, tmp_path, epochs=1)
    [folder] = folders(tmp_path / "save")
    (folder / "random_state.ckpt").unlink()
    manifest = folder / "MANIFEST.json"
    listed = json.loads(manifest.read_text())
    del listed["files"]["random_state.ckpt"]
    manifest.write_text(json.dumps(listed))
    [line] = train(NoisyBrain, corpus, tmp_path, epochs=2)
    assert line["meta"]["epoch"] == 2


def test_accumulated_gradients_are_not_lost(corpus, tmp_path):
    """No checkpoint comes between the optimizers' steps."""
    options = {
        "run_opts": {"ckpt_interval_steps": 1, "grad_accumulation_factor": 2}
    }
    train(NoisyBrain, corpus, tmp_path, (1, 2), **options)
    assert not folders(tmp_path / "save")
    train(NoisyBrain, corpus, tmp_path, (2, 1), **options)
    metas = AtomicCheckpointer(tmp_path / "save").find_checkpoints()
    assert len(metas) == 2


def test_a_nonfinite_validation_is_ranked_last(corpus, tmp_path):
    class Diverged(NoisyBrain):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            bad = not self.modules.training and self.hparams.bad
            return loss * float("nan") if bad else loss

    train(Diverged, corpus, tmp_path, epochs=1, bad=False)
    [line] = train(Diverged, corpus, tmp_path, epochs=2, bad=True)
    assert line["valid"]["loss"] == float("inf")
    checkpointer = AtomicCheckpointer(tmp_path / "save")
    assert checkpointer.find_checkpoint(min_key="loss").meta["epoch"] == 1


def test_the_optimizer_of_an_earlier_decoder_stage_is_found(tmp_path):
    """It had another name where there was no discriminator."""
    before, after = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    AtomicCheckpointer(
        tmp_path, {"optimizer_generator": before}
    ).save_checkpoint()
    AtomicCheckpointer(tmp_path, {"optimizer": after}).recover_if_possible()
    assert torch.equal(before.weight, after.weight)
