"""A process reward model from scratch on built-in data, scored by its own ids and by those of joined text.

`python benchmarks/process.py --json` trains by the command that a user types, on two processes of one thread each, and
takes the command's whole time, start and evaluation in it. The tokenizer splits text as Llama 3's does, so that a full
stop and the line end behind it are one token in joined text, and two where steps and marks are tokenised apart, as in
training.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import karat
from karat import arithmetic, metrics
from karat.evaluation import base as evaluation
from karat.formats import base as formats
from karat.rewards._local import LocalModel
from karat.types import Example, Result, Reward, Sequence

# The expression of Llama 3's tokenizer.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no")
LAUNCH = (*LAUNCH, "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes")
SHARES = {"operation": 30, "operand": 56, "skip": 11, "calculation": 3}  # of the wrong solutions that are learnt from
TRAINING = {
    "learning_rate": 3e-3,
    "epochs": 1,
    "batch_size": 24,
    "lr_scheduler_type": "linear",
    "warmup_steps": 50,
    "adam_beta2": 0.99,
    "weight_decay": 0.01,
}


def rows(n: int, seed: int, split: arithmetic.Split) -> list[dict[str, Any]]:
    """Problems with steps that end in a full stop."""
    drawn = arithmetic.step_rows(n, seed, split)
    return [{**row, "completions": [step + "." for step in row["completions"]]} for row in drawn]


def chosen(n: int, seed: int) -> list[dict[str, Any]]:
    """The same of training problems, with more rare slips: more than half of the wrong ones have a wrong operand.

    Of each problem solutions are drawn, and one of the wanted sort is taken; as often as not a right one.
    """
    chance, found = Random(seed), []
    for problem in arithmetic.problems(n, seed, "train"):
        slip = chance.choices(("", *SHARES), (sum(SHARES.values()), *SHARES.values()))[0]
        some = arithmetic.candidates(problem, 40 if slip else 2, seed)
        one = next((c for c in some if c.slip == slip), some[0])
        steps = [step + "." for step in one.steps]
        found.append({"prompt": problem.question, "completions": steps, "labels": list(one.labels)})
    return found


def start(folder: Path, texts: list[str], positions: int = 256) -> Path:
    """A new language model of four layers of 64 units, and its tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=positions
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=positions,
        initializer_range=64**-0.5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_slip(model: LocalModel, n: int, seed: int) -> dict[str, tuple[int, int]]:
    """For each kind of slip, and for right solutions, how many of how many are judged as they are."""
    found: dict[str, tuple[int, int]] = {}
    for problem in arithmetic.problems(n, seed, "test"):
        one = arithmetic.candidates(problem, 2, seed)[0]
        reward = model.score_steps(problem.question, [step + "." for step in one.steps])
        assert isinstance(reward, Reward)
        hits, count = found.get(one.slip, (0, 0))
        found[one.slip] = (hits + (metrics.first_error(reward.steps, 0.5) == one.first_error), count + 1)
    return found


def by_joined_text(model: LocalModel, examples: list[Example]) -> list[Result]:
    """What a pipeline gets that writes prompt, steps and line ends into one text: steps read at the tokens with one."""
    asked = []
    for example in examples:
        text = "\n".join([example.prompt[0].content, *example.steps]) + "\n"
        found = model.parts.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [i for i, (a, b) in enumerate(found["offset_mapping"]) if "\n" in text[a:b]][1:]  # not the prompt's
        asked.append(Sequence((0, *found["input_ids"]), {"step": tuple(i + 1 for i in ends)}))
    return [Reward(scored.value, scored.steps) for scored in model.scored(asked)]


def train(processes: int, settings: dict[str, Any]) -> float:
    """Train by the command line; seconds from its start to its end."""
    launch = [*LAUNCH, str(processes)] if processes > 1 else []
    given = chain.from_iterable((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
    command = [sys.executable, *launch, "-m", "karat", "train", "process", *given]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def main() -> None:
    """Train, judge both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=48_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language-weight", type=float, default=1.0, help="of the next tokens of right steps")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given, held_out = chosen(options.rows, options.seed), rows(options.held_out, 1, "test")
        for part, some in (("train", given), ("test", held_out)):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        joined = ["\n".join([row["prompt"], *row["completions"]]) + "\n" for row in given[:4000]]
        model = start(folder / "start", joined)
        files = {
            "model": model,
            "data": folder / "train.jsonl",
            "eval": folder / "test.jsonl",
            "output": folder / "out",
        }
        own = {"language_weight": options.language_weight, "seed": options.seed}
        seconds = train(options.processes, {**files, **TRAINING, **own})
        local = karat.load(str(folder / "out"))
        assert isinstance(local, LocalModel)
        items = list(formats.load(str(folder / "test.jsonl")).items)
        learnt = list(formats.load(str(folder / "train.jsonl")).items)
        own = evaluation.evaluate(lambda e: list(local.score_many(e)), items, learnt, output="probability")
        other = evaluation.evaluate(lambda e: by_joined_text(local, list(e)), items, output="probability")
        slips = by_slip(local, options.held_out, 1)
    found = {"training_seconds": seconds, "rows": options.rows, "by_slip": slips}
    found |= {"own_ids": evaluation.summary(own), "joined_text": evaluation.summary(other)}
    print(json.dumps(found, indent=2) if options.json else table(found))


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"trained on {found['rows']} solutions in {found['training_seconds']:.0f} s"]
    for name in ("own_ids", "joined_text"):
        for figure in ("F1", "step accuracy", "step AUC"):
            one = found[name]["figures"][figure]
            nulls = found[name]["nulls_of"].get(figure, {})
            best = f"  best null {max(nulls, key=nulls.get)} {max(nulls.values()):.3f}" if nulls else ""
            lines.append(f"{name:12} {figure:14} {one['value']:.3f} ({one['low']:.3f} … {one['high']:.3f}){best}")
    lines += [f"{slip or 'right':12} {hits} of {count}" for slip, (hits, count) in found["by_slip"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
