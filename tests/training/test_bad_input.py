"""Settings and circumstances that cannot work end in one sentence with the mend; nothing is lost or half written."""

import os
import resource
import subprocess
import sys

import kit
import pytest
import torch
from safetensors.torch import load_file

import toys
from karat.models import scratch
from karat.spec import RewardSpec
from karat.training import _start, run
from karat.training.config import TrainConfig, read_yaml
from karat.types import BadInput, CheckpointError, KaratError, Refused

BASE = {"kind": "bradley_terry", "model": "m", "data": ("d",), "output": "o"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
        ({"learning_rate": 0}, "learning_rate: input should be greater than 0 (it is 0)"),
        ({"batch_size": 0}, "batch_size"),
        ({"method": "qlora"}, "'full', 'lora' or 'frozen' (it is 'qlora')"),
        ({"data": ()}, "data: "),
        ({"epochs": -1}, "epochs"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(BadInput) as error:
        TrainConfig.make(**{**BASE, **settings})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_goes_on_keeps_the_head_that_is_there():
    own = RewardSpec(kind="process").with_options(outputs=2, bias=True)
    _start._check_head(own, own.with_options(outputs=2), {"outputs": 2})
    with pytest.raises(BadInput, match=r"outputs is 2; leave outputs out, or start from the model"):
        _start._check_head(own, own.with_options(outputs=3), {"outputs": 3})


def test_one_file_or_share_need_not_be_a_list():
    made = TrainConfig.make(**{**BASE, "data": "d.jsonl", "eval": 0.25})
    assert made.data == ("d.jsonl",) and made.held_out_share == 0.25 and made.eval_files == ()
    assert TrainConfig.make(**BASE, eval=("a.jsonl", "b.jsonl")).eval_files == ("a.jsonl", "b.jsonl")
    with pytest.raises(BadInput, match=r"a share from 0 to under 1, not 1\.5"):
        _ = TrainConfig.make(**BASE, eval="1.5").held_out_share


@pytest.mark.parametrize("content", [b"- a\n", b"a: [", b"\xff\xfe"])
def test_yaml(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(BadInput, match="setting: value"):
        read_yaml(tmp_path / "run.yaml")
    with pytest.raises(BadInput, match=r"there is no file .*none\.yaml; give a YAML file"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bradley_tery"}, "no kind 'bradley_tery'; did you mean 'bradley_terry'?"),
        ({"options": {"centre": 0.1}}, "unknown option 'centre' of kind bradley_terry; did you mean 'center'?"),
        ({"options": {"center": -1}}, "an option of kind bradley_terry is wrong: center"),
        ({"spec": {"poling": "mean"}}, "unknown option 'poling'; did you mean 'pooling'?"),
        ({"spec": {"over_length": "cut"}}, "over_length has to be error, drop, cut_prompt or cut_end, not 'cut'"),
        ({"spec": {"max_length": 0}}, "max_length"),
        ({"trainer": {"warmup_step": 3}}, "unknown trainer setting 'warmup_step'; did you mean 'warmup_steps'?"),
        ({"trainer": {"seed": 3}}, "the trainer setting seed is karat's to choose; use karat's own seed"),
        ({"trainer": {"per_device_train_batch_size": 3}}, "use karat's own batch_size"),
        (
            {"trainer": {"lr_scheduler_type": "cosin"}},
            "transformers refuses the trainer settings: cosin is not a valid",
        ),
        (
            {"trainer": {"report_to": "wandb"}},
            "transformers refuses the trainer settings: WandbCallback requires wandb",
        ),
        ({"trainer": {"report_to": "tensorbord"}}, "tensorbord is not supported"),
        ({"trainer": {"gradient_accumulation_steps": 3}}, "batch_size=8 cannot be split into 3 equal parts"),
        (
            {"method": "frozen", "trainer": {"gradient_checkpointing": True}},
            "gradient_checkpointing saves nothing with method=frozen",
        ),
        ({"method": "lora", "lora": {"rank": 3}}, "peft refuses the LoRA options"),
        ({"method": "lora", "lora": {"target_modules": ["none_such"]}}, "peft refuses the LoRA options"),
        ({"format": "hhx"}, "no format 'hhx'; did you mean 'hh'?"),
        ({"data": "none.jsonl"}, "none.jsonl"),
        ({"data": "{data}[90:]"}, "selects no rows"),
        ({"eval": "none.jsonl"}, "none.jsonl"),
        ({"model": "scratch:hiden=3"}, "unknown size 'hiden' of a scratch model; did you mean 'hidden'?"),
        ({"model": "scratch:hidden=3"}, "hidden has to be an even multiple of heads"),
        ({"model": "scratch:layers=x"}, "size layers of a scratch model has to be a whole number above 0, not 'x'"),
        ({"model": "scratch", "method": "lora"}, "a new model has nothing that method=lora could keep"),
        ({"model": "/none/such"}, "/none/such is no folder"),
    ],
)
def test_run(model_folder, tmp_path, settings, message):
    data = kit.pairs(tmp_path)
    given = {"data": data, "model": model_folder, **settings}
    if given["data"] != data:
        given["data"] = given["data"].replace("{data}", data)
    with pytest.raises((BadInput, Refused)) as error:
        kit.train(tmp_path, **given)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_mended_setting_starts_anew(model_folder, tmp_path):
    """A run that was refused before its first step leaves nothing that stands in the way of the mended one."""
    data = kit.pairs(tmp_path)
    with pytest.raises(BadInput, match="did you mean"):
        kit.train(tmp_path, model_folder, data, spec={"poling": "mean"})
    assert kit.train(tmp_path, model_folder, data, spec={"pooling": "last"}).folder.is_dir()


def test_output_is_there_already(model_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(BadInput, match="is already there; choose another --output, or remove it"):
        kit.train(tmp_path, model_folder, kit.pairs(tmp_path))
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_output_cannot_be_written(model_folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInput, match=r"cannot be written to .* choose another --output"):
        kit.train(tmp_path, model_folder, kit.pairs(tmp_path), output=tmp_path / "file" / "out")


def test_one_prompt_cannot_be_split(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", [{"prompt": "p", "chosen": f"{i}", "rejected": "x"} for i in range(4)])
    with pytest.raises(BadInput, match=r"1 distinct prompt cannot be split; .* hold out nothing with eval=0"):
        kit.train(tmp_path, model_folder, data, eval="0.5")


def test_pairs_of_equal_answers_are_told_before_their_prompts_are_counted(model_folder, tmp_path):
    data = kit.write(tmp_path / "d.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3)
    with pytest.raises(BadInput, match="no row of the train data can be used: dropped 3: its answers are the same"):
        kit.train(tmp_path, model_folder, data, eval="0.5")


def test_a_held_out_loss_that_is_no_number_ends_training(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run._Run, "_judge", lambda self: {"loss": float("nan")})
    with pytest.raises(BadInput, match=r"training diverged: the held-out loss is nan at step 1; use a learning_rate"):
        kit.train(tmp_path, model_folder, kit.pairs(tmp_path), eval="0.2")
    assert not (tmp_path / "out").exists()


def test_golden_inputs_that_score_no_number_are_divergence(tmp_path, monkeypatch):
    """They were found when the checkpoint was loaded again, and blamed on it."""
    values = run.LocalModel.values
    golden = run.checkpoint.GOLDEN[0][1]

    def broken(self, sequences):
        texts = [self.parts.tokenizer.decode(list(s.ids)) for s in sequences]
        return [float("nan") if golden in t else v for t, v in zip(texts, values(self, sequences), strict=True)]

    monkeypatch.setattr(run.LocalModel, "values", broken)
    with pytest.raises(BadInput, match="training diverged: the rewards are no numbers at step 2"):
        kit.train(tmp_path, toys.save(tmp_path / "model"), kit.pairs(tmp_path, 16))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_ends_training_and_is_not_saved(tmp_path, monkeypatch):
    model = toys.save(tmp_path / "model")
    data = kit.pairs(tmp_path)
    loss = run.RewardTrainer.compute_loss

    def diverging(self, *args, **kwargs):
        return loss(self, *args, **kwargs) * (float("nan") if self.state.global_step == 3 else 1.0)

    monkeypatch.setattr(run.RewardTrainer, "compute_loss", diverging)
    with pytest.raises(
        BadInput, match=r"training diverged: the loss is nan at step 4; use a learning_rate below 0.001"
    ):
        kit.train(tmp_path, model, data, epochs=4.0)
    assert not (tmp_path / "out").exists()
    kept = load_file(tmp_path / "out.partial" / "checkpoint-3" / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in kept.values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    """The last step's loss is finite, but not what the step makes of the weights."""
    model = toys.save(tmp_path / "model")
    step = torch.optim.AdamW.step

    def breaking(self, *args, **kwargs):
        step(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    with pytest.raises(BadInput, match=r"training diverged: .* has weights that are no numbers at step 1"):
        kit.train(tmp_path, model, kit.pairs(tmp_path, 8))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.partial/checkpoint-*"))


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_learning_rate_far_too_high(model_folder, tmp_path, rate):
    """Either it diverges and says so, or every number that it leaves is one."""
    try:
        trained = kit.train(tmp_path, model_folder, kit.pairs(tmp_path), learning_rate=rate, eval="0.2")
    except BadInput as error:
        assert "training diverged" in str(error) and f"learning_rate below {rate:g}" in str(error)
        assert not (tmp_path / "out").exists()
    else:
        saved = load_file(trained.folder / "model.safetensors")
        assert all(torch.isfinite(t).all() for t in saved.values())
        assert all(abs(loss) < float("inf") for loss in kit.losses(trained)) and trained.result.judged == 5


def test_disk_that_fills_while_a_checkpoint_is_written(model_folder, tmp_path, monkeypatch):
    data = kit.pairs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", _full)
        with pytest.raises(
            CheckpointError, match=r"checkpoint of step 1 could not be written \(No space left.*free space"
        ):
            kit.train(tmp_path, model_folder, data)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.partial/checkpoint-*"))
    assert kit.train(tmp_path, model_folder, data).folder.is_dir()


def _full(*_, **__):
    raise OSError(28, "No space left on device")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from karat.cli.base import main
sys.argv = ["karat", *sys.argv[2:]]
main()
"""


@pytest.mark.full
@pytest.mark.parametrize("limit", [500, 20_000, 130_000])  # the settings, a tokenizer, the weights
@pytest.mark.parametrize("model", ["toy", "scratch:hidden=64,layers=2,heads=2,vocab=300"])
def test_full_disk(model_folder, tmp_path, limit, model):
    data = kit.pairs(tmp_path)
    chosen = str(model_folder) if model == "toy" else model
    command = ["train", "bradley_terry", "--model", chosen, "--data", data, "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("karat: ") and ("written" in last)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out-*"))


def test_sizes_of_scratch_models():
    assert scratch.sizes("scratch") == scratch.SIZES
    assert issubclass(BadInput, KaratError) and resource.RLIMIT_FSIZE is not None
