"""What servers are asked: models, prompts and answers, all different, so that no cache holds a whole reply."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import _workloads
import torch
from _server_sides import Item
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

import toys

STEP = "<extra_0>"
WORDS = ("the", "sum", "of", "two", "numbers", "is", "even", "when", "both", "are", "odd", "so", "we", "add", "three")
# 1.0 million parameters; vLLM's CPU attention takes heads of 32 or 64 only.
TINY = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1024}


def tiny(folder: Path) -> Path:
    """A seeded Llama of a million parameters whose tokenizer has the words of its texts, as real ones mostly have."""
    tokenizer = toys.byte_tokenizer()
    texts = (text for item in short(2000) for text in (item.prompt, *item.answers))
    tokenizer = tokenizer.train_new_from_iterator(texts, TINY["vocab_size"] - 16)
    return toys.save(folder, toys.reward_model(**TINY, intermediate_size=512), tokenizer)


def small(folder: Path) -> Path:
    """Model S of performance.md: 9.3 million parameters."""
    return _workloads.model_folder("S")


def steps(folder: Path) -> Path:
    """Model S's sizes as a Qwen2.5-Math-PRM: two classes at each <extra_0>, which vLLM serves natively."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(_workloads.tokenizer().name_or_path)
    tokenizer.add_tokens([AddedToken(STEP, special=True)], special_tokens=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        intermediate_size=768,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        num_labels=2,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
    )
    model = Qwen2ForSequenceClassification(config)
    model.score = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 2))
    for layer in (model.score[0], model.score[2]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "architectures": ["Qwen2ForProcessRewardModel"]}))
    return folder


def short(count: int) -> list[Item]:
    """A short prompt with a short answer: most of the work is the front end's."""
    chance = random.Random(1)

    def words(low: int, high: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))

    return [Item(f"Q{n}: {words(4, 10)}? ", (words(2, 8),)) for n in range(count)]


def groups(count: int, head: str = "", first: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A question behind a head, and 16 solutions: its own four and twelve of the next three questions."""
    asked = _workloads.questions()[_workloads.PART["report"] :]
    shots = "".join(f"Question: {q}\nSolution: {s[0]}\nGrade: A\n\n" for q, s in asked[:2])
    for n in range(first, first + count):
        place, turn = n % (len(asked) - 8), n // (len(asked) - 8)
        own = [s for _, four in asked[place + 2 : place + 6] for s in four]
        again = f"({turn}) " if turn else ""
        yield f"{head or shots}{again}Question: {asked[place + 2][0]}\nSolution: ", own


def singles(count: int) -> list[Item]:
    """Best of 16 as single requests, group after group, each behind a grading prompt of two examples."""
    return [Item(prompt, (a,)) for prompt, own in groups(count // 16 + 1) for a in own][:count]


def candidates(count: int) -> list[Item]:
    """Sixteen answers to a request, to other prompts than `singles`: vLLM's cache holds those for long."""
    return [Item(prompt, tuple(own)) for prompt, own in groups(count, first=100_000)]


def under_128(count: int) -> list[Item]:
    """Best of 16 as single requests behind a prompt of under 128 tokens, which is less than a block of vLLM's cache."""
    encode = _workloads.tokenizer().encode
    found = ((p, own) for p, own in groups(count // 4, "Grade this. ") if len(encode(p)) < 120)
    return [Item(prompt, (a,)) for prompt, own in found for a in own][:count]


def growing(count: int, beams: int = 32, most: int = 8) -> list[Item]:
    """Solutions that grow by a step at a time, `beams` of them at once, each prefix with all its steps' rewards."""
    found: list[Item] = []
    for number, (prompt, own) in enumerate(groups(count)):
        lines = [line for solution in own for line in solution.splitlines() if line.strip()]
        chosen = random.Random(number).sample(lines, min(most, len(lines)))
        found += [Item(prompt, ("".join(step + STEP for step in chosen[: n + 1]),)) for n in range(len(chosen))]
        if len(found) >= 2 * count:
            break
    by_beams = [found[i : i + beams * most] for i in range(0, len(found), beams * most)]
    return [own for block in by_beams for n in range(most) for own in block[n::most]][:count]


def long(count: int) -> list[Item]:
    """Four dialogues of HH at a time, about 700 tokens, with nothing in common."""
    rows = [row["chosen"] for row in _workloads.pairs()]
    chance = random.Random(2)
    return [Item(f"{n}: " + "".join(chance.choices(rows, k=3)), (chance.choice(rows),)) for n in range(count)]


Work = Callable[[int], list[Item]]
