"""`karat search`: problems to answers by best-of-N, votes, beams or trees, at a counted cost; resumable."""

from pathlib import Path
from typing import Any

import typer

from karat.cli import _options

SETTINGS = _options.OPEN
_LINES = 8  # of failures


def command(
    context: typer.Context,
    method: str = typer.Argument(
        help="best_of_n, majority, weighted_best_of_n, tournament, rejection, adaptive, beam, …; or plan."
    ),
    problems: str = typer.Argument(
        None, help="Rows with prompt (or problem, or question), and answer where it is known: PATH[START:STOP]."
    ),
    policy: str = typer.Option(
        None, help="Folder or hub id of a causal model, an endpoint's URL, replay:FILE, arithmetic."
    ),
    output: Path = typer.Option(None, help="A .jsonl, .jsonl.gz or .parquet file."),
    reward: str = typer.Option(None, help="Folder or hub id of a reward model, the URL of a karat serve, replay:FILE."),
    task: str = typer.Option("", help="A YAML file: system, prompt, chat_template, delimiter, stop, finished, answer."),
    delimiter: str = typer.Option(None, help="Between steps (\\n\\n, or what the policy writes)."),
    budget: int = typer.Option(None, help="Tokens that the policy may generate for a problem."),
    seed: int = typer.Option(0, help="Of all draws."),
    temperature: float = typer.Option(0.8, help="Of the policy's sampling, above 0."),
    top_p: float = typer.Option(1.0, help="Share of probability that is sampled from."),
    max_tokens: int = typer.Option(1024, help="Of an answer, or of a step, at most."),
    policy_model: str = typer.Option(None, help="Name of the model at the endpoint, where it has several."),
    api: str = typer.Option("chat", help="Of the endpoint: chat (goes on with a message, as vLLM) or completions."),
    concurrency: int = typer.Option(16, help="Requests to the endpoint at a time."),
    batch_size: int = typer.Option(32, help="Sequences that a local policy samples at a time."),
    policy_parameters: float = typer.Option(None, help="Of a policy elsewhere, such as 8e9: for its FLOPs."),
    reward_parameters: float = typer.Option(None, help="Of a reward model elsewhere: for its FLOPs."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    compiled: bool = _options.COMPILED,
    as_json: bool = _options.JSON,
) -> None:
    """Find answers to problems; the same command goes on where a killed one stopped.

    Rows keep their columns and get response, final_answer, correct, reward, all candidates, what was spent and what
    failed. Methods are best_of_n, majority, weighted_best_of_n, tournament, rejection, adaptive, beam, dvts and mcts;
    further options are the method's (--n, --width, --max-steps, --lookahead, --normalize, …: see docs/search.md) and
    the reward model's (--aggregate, --activation, --weights, …). The exit code is 1 where no problem got an answer.

    plan POOL --difference 0.02 says how many samples and problems it takes to see such a gain (docs/plan.md).
    """
    if method == "plan":
        from karat.cli import _plan

        return _plan.run(context, problems, seed, as_json)
    if problems is None or policy is None or output is None:
        raise typer.BadParameter("a search needs problems, --policy and --output")

    import json

    from karat.rewards._equality import Judge
    from karat.rewards._offline import check_output
    from karat.search import base
    from karat.search._file import Run, read_rows, search_file
    from karat.search._policies import Wiring, open_policy
    from karat.search._policies import check_given as check_policy
    from karat.search._rewards import check_given as check_reward
    from karat.search._rewards import open_reward
    from karat.search._task import read_task
    from karat.search._work import Tools

    own = set(base.method(method).options.model_fields)
    extra = _options.extra(context, own | _options.spec_fields(), lambda word: base.hint(method, word))
    options = base.options(method, {name: value for name, value in extra.items() if name in own})
    spec = {name: value for name, value in extra.items() if name not in own}
    spec |= {name: True for name, asked in (("deterministic", deterministic), ("compiled", compiled)) if asked}
    read = read_task(task, None if delimiter is None else delimiter.replace("\\n", "\n").replace("\\t", "\t"))
    given = _options.given(context)
    check_reward(method, options, reward, {*spec, *({"reward_parameters"} & given)})
    loaded = {"device", "dtype"} if reward is not None else set()  # a reward model uses them too
    check_policy(policy, (given - loaded) | ({"chat_template"} if read.chat_template else set()))
    check_output(output)
    read_rows(problems)  # before a model is loaded
    wiring = Wiring(policy_model, api, concurrency, batch_size, device, dtype, read.chat_template)
    opened = open_policy(policy, base.Sampling(temperature, top_p, max_tokens), wiring)
    rm = None if reward is None else open_reward(reward, device, dtype, **spec)
    with Judge() as judge:
        sizes = (policy_parameters, reward_parameters)
        tools = Tools.of(opened, rm, read, judge, seed=seed, budget=budget, parameters=sizes)
        found = search_file(Run(method, options, tools), problems, output)
    print(json.dumps(found) if as_json else _said(found))
    _end(found)


def _said(found: dict[str, Any]) -> str:
    """The summary in two lines."""
    share, spent = found["accuracy"], found["spent"]
    right = f"; right {share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}] of {share['n']}" if share else ""
    flops = {name: spent.get(f"{name}_flops") for name in ("policy", "reward")}
    cost = ", ".join(f"{name} {'not known' if value is None else f'{value:.3g}'}" for name, value in flops.items())
    policy, computed, whole = (spent.get(name, 0) for name in ("policy_tokens", "computed_tokens", "reward_tokens"))
    tokens = "tokens that it does not count" if policy is None else f"{policy:.0f} tokens"
    return (
        f"{found['method']} answered {found['solved']} of {found['problems']} problems in {found['output']}{right}\n"
        f"a problem cost {tokens} of the policy and {computed:.0f} of the reward model ({whole:.0f} without"
        f" its cache); FLOPs: {cost}"
    )


def _end(found: dict[str, Any]) -> None:
    """Say on stderr what failed and why; no answer at all is a failure."""
    import sys

    lines = [(what, reason, count) for what, own in found["failures"].items() for reason, count in own.items()]
    for what, reason, count in lines[:_LINES]:
        print(f"{what} {count}: {_options.spelled(reason)}", file=sys.stderr)
    if found["candidates"]["least"] != found["candidates"]["most"]:
        least, most = found["candidates"]["least"], found["candidates"]["most"]
        print(f"problems have from {least} to {most} candidates", file=sys.stderr)
    if found["tied"]:
        print(
            f"tied {found['tied']}: several candidates shared the first place; the earliest was chosen", file=sys.stderr
        )
    if found["not_had"]:
        print(
            f"without a sample {found['not_had']}: the policy gave none for these; accuracy is over the others",
            file=sys.stderr,
        )
    if found["over_budget"] and found["over_budget"]["problems"]:
        over = found["over_budget"]
        print(
            f"over budget {over['problems']}: a last draw is made whole, and took up to {over['most']} tokens more",
            file=sys.stderr,
        )
    if not found["solved"]:
        raise typer.Exit(1)
