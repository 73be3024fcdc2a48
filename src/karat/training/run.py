"""One training run from config to checkpoint: read, render, train, evaluate, save, report; resumable.

Work happens in `OUTPUT.partial`; `OUTPUT` appears whole when everything is done.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_model
from transformers import PrinterCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from karat.engine.base import check
from karat.engine.padded import PaddedForward
from karat.evaluation import base as evaluation
from karat.models import checkpoint
from karat.models.backbone import first_line, quiet, vocabulary
from karat.models.checkpoint import Parts
from karat.models.heads import Head
from karat.models.render import Rendered, Renderer
from karat.rewards._among import among
from karat.rewards._local import LocalModel, RewardModule, golden_values
from karat.rewards.base import Feature, Kind, kind
from karat.training import _data, _records, _sharded, _start, _stream, _work
from karat.training._card import card
from karat.training._data import Account, Row
from karat.training._forward import StoredForward
from karat.training._language import LanguageCollator, LanguageModule, LanguageTrainer
from karat.training._progress import Progress, StopOnSignal
from karat.training._ratio import RatioModule
from karat.training._stream import Stream
from karat.training.config import TrainConfig
from karat.training.features import FeatureStore, fingerprint
from karat.training.loop import Collator, RewardTrainer, arguments, mean_loss
from karat.types import Attributed, BadInput, Item, KaratError, Pair, Ranking

_PATIENCE = 3.0  # seconds


class Interrupted(KaratError):
    """Training was stopped; the message says how it goes on."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: a folder that `karat.load` reads, and what was found on held-out rows."""

    folder: Path
    results: tuple[evaluation.Result, ...]  # one for each sort of rows; none where there was nothing to judge
    accounts: tuple[Account, Account]
    history: Sequence[dict[str, float]] = ()  # Trainer's log
    first: bool = True  # this is the process that speaks and writes

    @property
    def result(self) -> evaluation.Result | None:
        """That of the rewards themselves, which comes first."""
        return next(iter(self.results), None)


def run(config: TrainConfig) -> Trained:
    """Train, evaluate and save; the same call goes on with a run that was stopped.

    Raises:
        BadInput: settings or data that cannot be used, or a loss that became no number.
        Interrupted: stopped by a signal, with a checkpoint to go on from.
        CheckpointError: the result could not be written.
    """
    # Without `cpu`, accelerate takes the processes of a launcher on a machine without GPUs for so many single ones.
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        return _run(config, state)
    except Interrupted:
        if not state.is_main_process:
            sys.exit(1)  # all were stopped at the same step, and the first process says so
        raise
    except KaratError:
        if not state.is_main_process:
            time.sleep(_PATIENCE)  # the first process says the same, and its end ends this one
        raise
    finally:
        _work.unlock(_work.folder(config))


def _run(config: TrainConfig, state: PartialState) -> Trained:
    settings = _start.trainer_settings(config)
    made = kind(config.kind, config.options)
    _start.check(config, made, settings)
    if config.stream:
        _stream.check(config, settings)
    with state.main_process_first():
        work = _work.open_work(config)
    set_seed(config.seed)
    (train, train_account), (rest, rest_account) = _data.read_both(config)
    with state.main_process_first():
        model = _start.starting_model(config, work, train, made)
    begin = partial(_start.start, config, model, made=made, items=train)
    parts, policy = begin(device=str(state.device) if state.device.type == "cuda" else "cpu")
    made = made.by(parts.spec)
    renderer = Renderer(parts.tokenizer, _start.cutting(parts.spec, policy), parts.positions)
    train = [made.learnt(item) if isinstance(item, made.items) else item for item in train]
    rows = _data.prepare(train, made, renderer, policy, train_account)
    held_out = _data.prepare(rest, made, renderer, policy, rest_account)
    accounts = (train_account, rest_account)
    if state.is_main_process:
        print("\n".join(line for account in accounts for line in account.lines()), file=sys.stderr)
    _data.check([row for row in rows if made.by_gradient(row.item)] or rows, made, train_account)
    check([s for row in (*rows, *held_out) for s in row.sequences], vocabulary(parts.backbone))
    if config.eval_files:
        _data.require(held_out, rest_account)
    with state.main_process_first():
        _work.check_rows(work, rows)
    if config.stream and parts.spec.of_tokens:
        raise BadInput(f"{config.kind} computes its reference for all rows beforehand; leave stream out")
    fitted = _Run(config, made, parts, rows, held_out, work)
    if made.language_weight:
        fitted.speak(*checkpoint.language_head(model, str(fitted.parts.backbone.device)))
    if config.stream:
        fitted.stream = Stream(config, partial(_taught, made=made, renderer=renderer, policy=policy))
        accounts = (fitted.stream.account, rest_account)
    with quiet():
        history = fitted.fit(settings)
        weights = _sharded.whole(fitted.sharded) if fitted.sharded else None
    unset_hf_deepspeed_config()  # with it, transformers would share out every model to come
    if state.is_main_process:
        print(f"trained; now {len(held_out)} held-out rows are judged, and the checkpoint is saved", file=sys.stderr)
    results = fitted.judged(accounts[1]) if state.is_main_process or fitted.sharded else ()
    if state.is_main_process:
        if weights is not None:
            fitted.parts = begin(device="cpu")[0]
            RewardModule(PaddedForward(fitted.parts.backbone), fitted.parts.head).load_state_dict(weights)
        _finish(fitted, accounts, history, results)
    state.wait_for_everyone()
    return Trained(config.output, results, accounts, history, state.is_main_process)


def _taught(items: Sequence[Any], account: Account, made: Kind, renderer: Renderer, policy: str) -> list[Row]:
    """The rows of a part of a stream that are learnt from."""
    learnt = [made.learnt(item) if isinstance(item, made.items) else item for item in items]
    rows = _data.collected(_data.rendered(learnt, made, renderer), policy, account)
    return [row for row in rows if made.by_gradient(row.item)]


# Training


class _Run:
    """What is trained, on what, and where."""

    def __init__(
        self, config: TrainConfig, made: Kind, parts: Parts, rows: list[Row], held_out: list[Row], work: Path
    ) -> None:
        self.config, self.kind, self.parts = config, made, parts
        self.rows, self.held_out, self.work = rows, held_out, work
        self.stream: Stream | None = None  # of which `rows` are the first
        self.sharded: RewardTrainer | None = None  # where no process has all weights
        local = LocalModel(parts)
        if config.method == "frozen":
            sequences = [s for row in (*rows, *held_out) for s in row.sequences]
            store = FeatureStore(config.features, fingerprint(parts.backbone)) if config.features else None
            self.forward: Any = StoredForward(local.engine, sequences, store)
            self._solve()
            local = LocalModel(parts, self.forward)
        else:
            self.forward = _sharded.chosen_forward(parts.backbone)
        self.local = local
        self.module = RewardModule(self.forward, parts.head)
        if parts.spec.of_tokens:
            sequences = [s for row in rows for s in row.sequences]
            self.module = self.forward = RatioModule(self.forward, parts.head, local, sequences)
        self.trainer, self.collator = RewardTrainer, Collator

    def speak(self, language: Head, known: int) -> None:
        """From now on the tokens of right steps are learnt as well, by this head of so many tokens."""
        self.module = self.forward = LanguageModule(self.forward, self.parts.head, language, known)
        self.trainer, self.collator = LanguageTrainer, LanguageCollator

    def _solve(self) -> None:
        """What has a closed form, and what a reader should know of it."""
        notes = self.kind.solve(self.parts.head, [self._feature(row) for row in self.rows])
        if notes and PartialState().is_main_process:
            print("\n".join(notes), file=sys.stderr)

    def _feature(self, row: Row) -> Feature:
        found = self.forward.run(list(row.sequences))
        states = [torch.cat([states[name] for name in self.parts.spec.reads], dim=-1) for states in found]
        return Feature(row.item, torch.cat(states))

    def fit(self, settings: dict[str, Any]) -> list[dict[str, float]]:
        """Train the parts in place; Trainer's log."""
        if not any(map(self._by_gradient, self.rows)):
            return []
        trainer = self._trainer(settings)
        if _sharded.is_sharded(trainer):
            self._share(trainer)
        stop, progress = StopOnSignal(), Progress(self.config.batch_size)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(stop)
        trainer.add_callback(progress)
        found = _work.last_checkpoint(self.work)
        if found is not None and PartialState().is_main_process:
            print(f"going on after step {found[1]} of {trainer.steps()}, from {found[0]}", file=sys.stderr)
        if found is not None and found[1] >= trainer.steps():
            load_model(trainer.model, found[0] / "model.safetensors")  # type: ignore[arg-type]
            self.sharded = None  # before training, every process has all weights
            return _work.read_log(found[0])
        if found is not None:
            _sharded.check_resumable(trainer, found[0])
        try:
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        finally:
            stop.release()
            progress.close()
        if stop.asked and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps};"
                " give the same command again to go on"
            )
        trainer.check_weights()
        if not all(map(math.isfinite, self._samples())):
            raise BadInput(trainer.diverged("the rewards are no numbers"))
        return list(trainer.state.log_history)

    def _share(self, trainer: RewardTrainer) -> None:
        """From now on weights are shared out, and what is computed is computed by all processes together."""
        if self.config.method == "frozen" or self.parts.spec.of_tokens:
            what = "method=frozen" if self.config.method == "frozen" else f"{self.config.kind}"
            raise BadInput(f"{what} keeps what it computes beforehand in one piece; launch without FSDP or ZeRO-3")
        if self.kind.language_weight:
            raise BadInput("language_weight needs the language head in one piece; launch without FSDP or ZeRO-3")
        self.sharded = trainer
        _sharded.keep_float32(trainer)
        self.local.engine = _sharded.engine(self.module)

    def _samples(self) -> list[float]:
        """Rewards that have to be numbers: of some rows, and of the inputs that the checkpoint is verified with."""
        local = LocalModel(self.parts) if self.config.method == "frozen" else self.local  # that one knows its rows only
        inputs = checkpoint.golden_inputs(self.parts.spec)
        golden = [r.sequence for r in local.renderer(inputs) if isinstance(r, Rendered)]
        return [*self.local.values([s for row in self.rows[:8] for s in row.sequences]), *local.values(golden)]

    def _by_gradient(self, row: Row) -> bool:
        return self.kind.by_gradient(row.item)

    def _trainer(self, settings: dict[str, Any]) -> RewardTrainer:
        try:
            given = arguments(str(self.work), **{**self._schedule(settings), **settings})
            _sharded.heed_fsdp()
            _sharded.in_autocast(given)
            return self.trainer(
                self.kind,
                self.stream or list(filter(self._by_gradient, self.rows)),
                self._judge if any(map(self._by_gradient, self.held_out)) else None,
                model=self.module,
                args=given,
                data_collator=self.collator(self.kind, self.forward),
            )
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise BadInput(f"transformers refuses the trainer settings: {first_line(error)}") from None

    def _schedule(self, settings: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        steps = int(settings.get("max_steps", -1))
        if steps < 1:
            learnt = sum(map(self._by_gradient, self.rows))
            steps = math.ceil(config.passes * math.ceil(learnt / config.batch_size))
        return {
            "num_train_epochs": config.passes,
            "learning_rate": config.rate,
            "seed": config.seed,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": -(-steps // 4),
            "save_steps": min(-(-steps // 4), 500),
            # each process reads a stream by itself, and takes its share of every batch
            "accelerator_config": {"dispatch_batches": False},
        }

    def _judge(self) -> dict[str, float]:
        """Figures of the held-out rows."""
        rows = list(filter(self._by_gradient, self.held_out))
        sequences = [s for row in rows for s in row.sequences]
        numbers_Rk, found = self.local.numbers(sequences)
        figures = {"loss": mean_loss(self.kind, rows, numbers_Rk)}
        rewards = iter(self.local.as_rewards(self.local.rewards(numbers_Rk, sequences, found)))
        answers = [a for row in rows for a in self.kind.judged(row.item, list(islice(rewards, len(row.sequences))))]
        results, _ = self.evaluate(lambda _: lambda _: answers, [row.item for row in rows])
        for result in results:
            figures |= {f.name: f.value for f in result.figures if f.name in (result.accuracy, result.headline)}
        return figures

    def evaluate(
        self,
        scorer: Callable[[Sequence[Item]], evaluation.Scorer],
        items: Sequence[Item],
        training: Sequence[Item] = (),
    ) -> tuple[list[evaluation.Result], str]:
        """What held-out items show, one result for each sort of them, or none and why they show nothing.

        `scorer` makes the scorer of some items.
        """
        found, problem = [], ""
        for some in _sorts(items):
            try:
                seed, output = self.config.seed, self.local.output
                found.append(evaluation.evaluate(scorer(some), some, training, seed, output=output))
            except BadInput as error:
                problem = str(error)
        return found, problem

    def judged(self, account: Account) -> tuple[evaluation.Result, ...]:
        """What the held-out rows show in the end; `account` is theirs."""
        self.parts.backbone.eval()
        held_out, training = ([row.item for row in rows] for rows in (self.held_out, self.rows))
        results, problem = self.evaluate(self.scorer, held_out, training)
        results[:1] = [evaluation.with_unscored(r, [reason for _, reason in account.dropped]) for r in results[:1]]
        if not results and PartialState().is_main_process:
            print(f"not evaluated: {problem or _nothing_held_out(account)}", file=sys.stderr)
        return tuple(results)

    def scorer(self, items: Sequence[Item]) -> evaluation.Scorer:
        """Scores the answers of such items from text on."""
        return partial(among, self.local, pairs=all(isinstance(item, Pair) for item in items))


def _sorts(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Preferences and whatever else is judged as a reward, and ratings of attributes."""
    rated: list[Item] = [item for item in items if isinstance(item, Attributed)]
    others: list[Item] = [item for item in items if not isinstance(item, Attributed)]
    return [some for some in (_of_one_class(others), rated) if some]


def _of_one_class(items: Sequence[Item]) -> Sequence[Item]:
    """Items that one evaluation takes: pairs beside rankings become rankings of two."""
    if not any(isinstance(item, Ranking) for item in items):
        return items
    return [_as_ranking(item) if isinstance(item, Pair) else item for item in items]


def _as_ranking(pair: Pair) -> Ranking:
    lead = pair.preference - 0.5
    ranks = (1, 2) if lead > 0 else (2, 1) if lead < 0 else (1, 1)
    return Ranking((pair.chosen, pair.rejected), ranks, pair.weight, pair.origin)


# After training


def _finish(
    done: _Run,
    accounts: tuple[Account, Account],
    history: list[dict[str, float]],
    results: Sequence[evaluation.Result],
) -> None:
    def also(folder: Path) -> None:
        _records.write(done.config, accounts, history, results, folder)
        (folder / "README.md").write_text(card(done.config, done.parts.spec, accounts, results), encoding="utf-8")
        if (done.work / "runs").is_dir():
            shutil.copytree(done.work / "runs", folder / "runs")

    checkpoint.save(done.parts, done.config.output, golden_values, also)
    shutil.rmtree(done.work, ignore_errors=True)


def _nothing_held_out(account: Account) -> str:
    count = len(account.dropped)
    if not count:
        return "no rows are held out"
    return f"all {count} held-out rows were dropped" if count > 1 else "the one held-out row was dropped"
