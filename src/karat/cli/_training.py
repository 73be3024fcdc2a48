"""Options that only a kind, a spec or transformers' Trainer knows, sorted into a run's settings."""

from typing import Any

import typer

from karat.cli import _options


def settings(context: typer.Context, **usual: Any) -> Any:
    """A run's `TrainConfig`: of --config, over it what the command line gives, and `usual` where neither says anything.

    Raises:
        typer.BadParameter: an option that nothing knows, or a setting that a run needs is missing.
    """
    from karat.training.config import TrainConfig, read_yaml

    told = context.params
    fields: dict[str, Any] = read_yaml(told["config"]) if told["config"] else {}
    folder, own = _options.outputs(told["output"] or [])
    given = {name: value for name, value in told.items() if name in TrainConfig.model_fields} | {"output": folder}
    fields |= {name: value for name, value in given.items() if value not in (None, [], ())}  # lists may be empty
    _add_extra(fields, context)
    if own:
        fields["spec"] = {**fields.get("spec", {}), **own}
    if missing := [name for name in ("kind", "model", "data", "output") if name not in fields]:
        options = ["KIND" if name == "kind" else f"--{name}" for name in missing]
        raise typer.BadParameter(f"give {', '.join(options)}, here or in --config")
    return TrainConfig.make(**{**usual, **fields})


def _add_extra(fields: dict[str, Any], context: typer.Context) -> None:
    """Put the options that the verb itself does not know into the settings' parts: the kind's, the spec's, Trainer's.

    Raises:
        typer.BadParameter: one that none of them knows.
    """
    if not context.args:
        return
    from karat.rewards.base import kinds, option_names
    from karat.training.config import TRL_NAMES

    own = set(option_names(fields["kind"])) if fields.get("kind") in kinds() else set()
    spec = _options.spec_fields() - {"kind", "spec", "family"}
    names = {*TRL_NAMES, "disable_dropout", "add_step_token"}
    trainer = _trainer_fields(context.args, own | spec | names)
    for name, value in _options.extra(context, own | spec | names | trainer).items():
        if name in names:
            fields[name] = value
            continue
        part = "options" if name in own else "spec" if name in spec else "trainer"
        fields[part] = {**fields.get(part, {}), name: value}


def _trainer_fields(arguments: list[str], known: set[str]) -> set[str]:
    names = {a[2:].partition("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
    if names <= known:
        return set()
    from transformers import TrainingArguments

    return set(TrainingArguments.__dataclass_fields__) - {"output_dir", "seed", "num_train_epochs", "learning_rate"}
