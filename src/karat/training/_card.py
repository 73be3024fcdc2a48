"""README.md of a trained model: what it reads and gives, what it was trained on, its figures beside their nulls."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from karat.evaluation.base import Figure, Result
from karat.formats.base import parse_source
from karat.spec import RewardSpec
from karat.training._data import Account
from karat.training.config import TrainConfig


def card(config: TrainConfig, spec: RewardSpec, accounts: Sequence[Account], results: Sequence[Result]) -> str:
    """The page, in Markdown, behind the fields that a hub reads. Folders of this machine go by their last name."""
    head = {"library_name": "karat", "pipeline_tag": "text-classification", "tags": ["reward-model", config.kind]}
    if _is_hub_id(config.model):
        head["base_model"] = config.model
    if sets := _from_hub(config.data):
        head["datasets"] = sets
    paragraphs = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {config.output.name}",
        f"A reward model of kind `{config.kind}`, trained by karat from {_shown(config.model)} (method"
        f" {config.method}, seed {config.seed}).",
        _use(config, spec),
        "## What it reads and gives",
        _table(("what", "said"), _reading(spec)),
        "## Data",
        _table(("set", "files", "rows used", "dropped", "cut"), _data(config, accounts)),
        "Rows that were dropped or cut are in `rows.jsonl`, each with the reason.",
        "## Figures",
        *([part for result in results for part in _figures(result)] or ["No rows were held out to judge it on."]),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _is_hub_id(model: str) -> bool:
    return model.count("/") == 1 and not Path(model).exists() and not model.startswith((".", "/", "~"))


def _from_hub(sources: Iterable[str]) -> list[str]:
    """The data sets of a hub among sources, each once.

    >>> _from_hub(("me/pairs:train[:100]@2", "me/pairs:test", "pairs.jsonl"))
    ['me/pairs']
    """
    names = (parse_source(source).path.partition(":")[0] for source in sources)
    return [name for name in dict.fromkeys(names) if _is_hub_id(name)]


def _shown(model: str) -> str:
    return f"`{model if _is_hub_id(model) else Path(model).name}`"


def _use(config: TrainConfig, spec: RewardSpec) -> str:
    asked = f'rm = karat.load("{config.output.name}")  # this folder, or its hub id'
    if spec.compares:
        call = 'rm.compare("What is 7*8?", "56", "54")  # probability that the first is preferred'
    elif spec.at_steps or spec.of_tokens:
        call = 'rm.score_steps("What is 7*8+1?", ["7*8=56.", "56+1=57."])'
    else:
        call = 'rm.score("What is 7*8?", ["56", "54"])  # higher is better'
    return f"```python\nimport karat\n\n{asked}\n{call}\n```"


def _reading(spec: RewardSpec) -> Iterable[tuple[str, str]]:
    head = spec.head
    yield "text", f"layout {spec.render.layout}, written out in `reward_spec.json`; EOS {spec.render.eos}"
    yield "read at", " and ".join(spec.reads)
    yield "computed by", f"a {head.type} head of {head.outputs} output{'s' * (head.outputs != 1)}"
    yield "activation", spec.activation
    if spec.objectives:
        yield "objectives", ", ".join(spec.objectives)
    if spec.at_steps:
        yield "aggregate", f"{spec.aggregate} of the steps"
    yield "longest text", f"{spec.render.max_length} tokens" if spec.render.max_length else "what the model takes"


def _data(config: TrainConfig, accounts: Sequence[Account]) -> Iterable[tuple[str, ...]]:
    held_out = f"a share of {config.held_out_share:g} of the prompts" if config.held_out_share else None
    files = (", ".join(map(_file, config.data)), held_out or ", ".join(map(_file, config.eval_files)))
    for account, named in zip(accounts, files, strict=True):
        yield account.name, named, str(account.used), str(len(account.dropped)), str(len(account.cut))


def _file(source: str) -> str:
    return f"`{source if _is_hub_id(source.partition(':')[0]) else Path(source).name}`"


def _figures(result: Result) -> Iterable[str]:
    unscored = f", {sum(result.unscored.values())} unscored" if result.unscored else ""
    yield f"### {result.name}: {result.judged} of {result.n} {result.unit} judged{unscored}"
    rows = [row for own in result.figures for row in (_row(own), *map(_null, result.nulls_of(own.name)))]
    yield _table(("figure", "value", "95 % interval"), rows)


def _row(figure: Figure) -> tuple[str, str, str]:
    sure = "" if figure.low is None or figure.high is None else f"{figure.low:.4f} to {figure.high:.4f}"
    return figure.name, f"{figure.value:.4f}", sure


def _null(figure: Figure) -> tuple[str, str, str]:
    name, value, sure = _row(figure)
    return f"· {name} (null: it knows nothing of quality)", value, sure


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
