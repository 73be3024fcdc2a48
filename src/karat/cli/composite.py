"""`karat composite`: an answer check and reward models as one reward, by a product, a weighted sum or gates."""

import typer

from karat.cli import _options
from karat.types import BadInput

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    models: list[str] = typer.Argument(None, help="Folders or hub ids of reward models; none with a check alone."),
    output: list[str] = typer.Option(..., help="A new folder. A number or [weights] is the spec's."),
    combine: str = typer.Option("product", help="product, sum or gated."),
    check: str = typer.Option(None, help="Key of the context that holds the reference answer."),
    weight: list[str] = typer.Option([], help="NAME=NUMBER in a sum; NAME is a folder's, or check. (1)"),
    at_least: list[str] = typer.Option([], help="NAME=NUMBER: this model is a gate that opens from there on."),
    otherwise: float = typer.Option(None, help="Of gated: the reward of answers that do not pass."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    as_json: bool = _options.JSON,
) -> None:
    """Make one reward of an answer check and reward models; the folder names them, and they stay where they are.

    product: the check times probabilities. sum: each part times its weight. gated: the reward of the models that are
    no gates, where the check and every gate are passed. Further options are the spec's, for all models (--activation
    sigmoid, --max-length, …).
    """
    import json
    import sys

    from karat import load
    from karat.evaluation._files import check_output
    from karat.rewards import composite
    from karat.rewards._wrapped import save_spec

    folder, own = _options.outputs(output)
    options = {**_options.extra(context, _options.spec_fields()), **own}
    paths = models or []
    rule = composite.Rule(combine, check, _options.numbers(weight), _options.numbers(at_least), otherwise)
    composite.check(paths, rule)
    if folder is None:
        raise BadInput("--output is a number; give the folder to write as well")
    check_output(folder)
    loaded = {path: load(path, device=device, dtype=dtype, deterministic=deterministic, **options) for path in paths}
    spec = composite.make(loaded, folder, rule, options)
    save_spec(spec, folder)
    if as_json:
        print(json.dumps({"output": str(folder), **spec.model_dump()}))
        return
    parts = [term.name for term in spec.terms] + ([f"answer check by {spec.check.key!r}"] if spec.check else [])
    print(f"{spec.combine} of {', '.join(parts)} in {folder}")
    if composite.loses_steps(spec, list(loaded.values())):
        print("rewards of steps are left out: each answer has one reward", file=sys.stderr)
