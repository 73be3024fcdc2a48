"""`karat label`: problems with answers to step labels, from a policy's rollouts; resumable."""

from pathlib import Path
from typing import Any

import typer

from karat.cli import _options


def command(
    context: typer.Context,
    problems: str = typer.Argument(
        help="Rows with prompt (or problem, or question), answer, and maybe steps to label: PATH[START:STOP]."
    ),
    policy: str = typer.Option(..., help="Folder or hub id of a causal model, an endpoint's URL, or arithmetic."),
    output: Path = typer.Option(..., help="A .jsonl, .jsonl.gz or .parquet file in the format stepwise."),
    method: str = typer.Option("hard", help="hard, soft (Math-Shepherd), omega (OmegaPRM) or adaptive."),
    rollouts: int = typer.Option(8, help="From behind each step that is asked for; of adaptive, on average."),
    budget: int = typer.Option(None, help="Rollouts for an answer at most; of an OmegaPRM tree, for a problem (200)."),
    solutions: int = typer.Option(4, help="Answers that the policy is asked for where a problem has no steps."),
    searches: int = typer.Option(20, help="Wrong rollouts of an OmegaPRM tree that are searched at most."),
    tolerance: float = typer.Option(0.0, help="Adaptive stops where each label's standard deviation is at most this."),
    temperature: float = typer.Option(0.8, help="Of the policy's sampling, above 0."),
    top_p: float = typer.Option(1.0, help="Share of probability that is sampled from."),
    max_tokens: int = typer.Option(1024, help="Of a continuation at most."),
    separator: str = typer.Option(None, help="Between steps (\\n\\n, or \\n where the policy writes no paragraphs)."),
    policy_model: str = typer.Option(None, help="Name of the model at the endpoint, where it has several."),
    api: str = typer.Option("chat", help="Of the endpoint: chat (goes on with a message, as vLLM) or completions."),
    concurrency: int = typer.Option(16, help="Requests to the endpoint at a time."),
    batch_size: int = typer.Option(32, help="Sequences that a local policy samples at a time."),
    seed: int = typer.Option(0, help="Of all rollouts."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    as_json: bool = _options.JSON,
) -> None:
    """Label the steps of answers by what a policy makes of them; the same command goes on where a killed one stopped.

    Answers are equal by their numbers, units and algebra (math-verify), never by substring. A rollout without a verdict
    is counted apart, never as a wrong one. What was sampled, at what cost, is in each row's context. The exit code
    is 1 where no problem could be labelled.
    """
    import json

    from karat.rewards._offline import check_output
    from karat.search._policies import Wiring, check_given, open_policy
    from karat.search.base import Sampling
    from karat.training._labels_file import label_file, read_problems
    from karat.training.labels import Plan

    apart = None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")
    plan = Plan(method, rollouts, budget, solutions, searches, tolerance, seed, apart)
    sampling = Sampling(temperature, top_p, max_tokens)
    check_given(policy, _options.given(context))
    check_output(output)
    read_problems(problems)  # before a policy is loaded
    opened = open_policy(policy, sampling, Wiring(policy_model, api, concurrency, batch_size, device, dtype))
    found = label_file(opened, problems, output, plan)
    if as_json:
        print(json.dumps(found))
    elif found["labelled"]:
        print(
            f"labelled {found['answers']} answers to {found['labelled']} of {found['problems']} problems in"
            f" {output}, from {found['rollouts']} rollouts of {found['tokens']} tokens"
        )
    _end(found)


def _end(found: dict[str, Any]) -> None:
    """Say on stderr what has no label or no verdict and why; nothing labelled is a failure."""
    import sys

    for word in ("missing", "unlabelled"):
        for reason, count in list(found[word].items())[:5]:
            print(f"{word} {count}: {_options.spelled(reason)}", file=sys.stderr)
    if not found["labelled"]:
        raise typer.Exit(1)
