"""Adapters inside TRL itself, in its own environment: in the process, and over HTTP and awaited."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import _rl_jobs as jobs  # noqa: E402
import ppo_with_prm as recipe  # noqa: E402

import karat  # noqa: E402
import toys  # noqa: E402
from karat.models import scratch  # noqa: E402
from serving.servers import threaded  # noqa: E402

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not jobs.TRL_PYTHON.is_file(), reason="TRL's environment is not there: run `make peers`"),
]
SMALL = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "log_completions": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    texts = [problem.question for problem in recipe.problems(64, 0)]
    size = "scratch:hidden=16,layers=1,heads=2,vocab=300,positions=128"
    return str(scratch.build(tmp_path_factory.mktemp("policy"), size, texts, 0, logits=True))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return str(toys.save(tmp_path_factory.mktemp("outcome")))


def job(policy, **more):
    return {"policy": policy, "seed": 0, "tested": 4, "prompts": 16, "settings": SMALL, **more}


def test_grpo_in_the_process(policy, outcome, tmp_path):
    found = jobs.run(job(policy, reward="karat", model=outcome), tmp_path, 2)
    logged = [row for row in found["history"] if "rewards/karat/mean" in row]
    assert len(logged) == 2 and all(row["rewards/karat/mean"] is not None for row in logged)
    assert all(0 <= row["karat/unscored"] <= 1 for row in logged)
    assert sum("monitor/hacking" in row for row in found["history"]) == 2


@pytest.mark.parametrize("trainer", ["rloo", "grpo"])
def test_a_process_reward_model_over_http_is_awaited_and_its_steps_are_kept(trainer, policy, tmp_path):
    folder = toys.save(tmp_path / "prm", toys.step_model())
    with threaded(karat.load(str(folder), kind="process")) as url:
        asked = job(policy, trainer=trainer, reward="async", model=url, table=str(tmp_path / "table"))
        found = jobs.run(asked, tmp_path / "run", 2)
    assert any("rewards/karat/mean" in row for row in found["history"])
    own = [row for path in (tmp_path / "table").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(own) == 16 and all((row["reward"] is None) == (row["step_scores"] is None) for row in own)
    theirs = [pq.read_table(path) for path in (tmp_path / "run" / "trl" / "completions").glob("*.parquet")]
    # TRL writes GRPO's completions alone to files; RLOO's are printed.
    assert sum(table.num_rows for table in theirs) == (16 if trainer == "grpo" else 0)
    assert all("karat_steps" in table.column_names for table in theirs)
