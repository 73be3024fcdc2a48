"""Faults of callers, of their texts, of time and of the end; in one process, without a socket."""

import asyncio
import contextlib
import threading
import time
from unittest import mock

import faults
import servers
import torch

import karat
import toys
from karat.serving._pipeline import Pipeline
from karat.types import Example, Message


def _numbers(chance, count=24):
    return chance.sample(range(faults.POOL), count)


def deadlines_pass(stage, chance):
    """Deadlines of every length: 504, or 429 where it is known to be too short, or the right score."""
    slow = chance.uniform(0.0, 0.02)
    with stage.engine(lambda own, sequences: time.sleep(slow) or own(sequences)), stage.local() as made:

        async def ask(n):
            headers = {"x-request-timeout": str(chance.choice([1e-6, 0.005, 0.02, 0.05, 30]))}
            return n, await made.client.post("/v1/reward", json=faults.body(n), headers=headers)

        async def everyone():
            return await asyncio.gather(*(ask(n) for n in _numbers(chance)))

        for n, reply in made.run(everyone()):
            if reply.status_code not in (429, 504):
                stage.right(reply, n)
        stage.well(made)


def tokenizer_raises(stage, chance):
    """The tokenizer fails on one text: its request fails alone."""
    numbers = _numbers(chance)
    bad = chance.choice(numbers)
    render = type(stage.model.renderer).__call__

    def own(self, examples):
        examples = list(examples)
        if any(faults.prompt(bad) in m.content for e in examples for m in e.prompt):
            raise chance.choice([RuntimeError("x"), MemoryError(), UnicodeError("y")])
        return render(self, examples)

    with mock.patch.object(type(stage.model.renderer), "__call__", own), stage.local() as made:
        stage.all(made, numbers, {bad})


def tokenizer_hangs(stage, chance):
    """The tokenizer takes its time with one text: others pass it by, and its own caller gets 504."""
    render, bad = type(stage.model.renderer).__call__, 7

    def own(self, examples):
        examples = list(examples)
        if any(faults.prompt(bad) in m.content for e in examples for m in e.prompt):
            time.sleep(0.3)
        return render(self, examples)

    with mock.patch.object(type(stage.model.renderer), "__call__", own), stage.local() as made:

        async def both():
            slow = asyncio.ensure_future(
                made.client.post("/v1/reward", json=faults.body(bad), headers={"x-request-timeout": "0.1"})
            )
            await asyncio.sleep(chance.uniform(0.0, 0.05))
            others = [made.client.post("/v1/reward", json=faults.body(n)) for n in (1, 2, 3)]
            return await asyncio.gather(slow, *others)

        slow, *others = made.run(both())
        assert slow.status_code == 504
        for n, reply in zip((1, 2, 3), others, strict=True):
            stage.right(reply, n)
        stage.well(made)


def callers_leave_the_queue(stage, chance):
    """Half of those who wait leave: what only they wanted is not computed."""
    seen = []

    def run(own, sequences):
        time.sleep(0.01)
        seen.extend(sequences)
        return own(sequences)

    with stage.engine(run), stage.local() as made:

        async def leave():
            tasks = [asyncio.ensure_future(made.client.post("/v1/reward", json=faults.body(n))) for n in range(60)]
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            for task in (gone := chance.sample(tasks, 30)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [(n, task.result()) for n, task in enumerate(tasks) if task not in gone]

        for n, reply in made.run(leave()):
            stage.right(reply, n)
        stage.well(made)
        assert len(seen) <= 62


def callers_leave_a_batch(stage, chance):
    """Callers leave while their batch is computed: the others of it get their scores (Ray Serve #41057)."""
    with stage.local() as made:

        async def leave():
            tasks = [asyncio.ensure_future(made.client.post("/v1/reward", json=faults.body(n))) for n in range(16)]
            await asyncio.sleep(0.01)
            gone = chance.sample(tasks, 8)
            for task in gone:
                await asyncio.sleep(chance.uniform(0.0, 0.004))
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [(n, task.result()) for n, task in enumerate(tasks) if task not in gone]

        with stage.engine(lambda own, sequences: time.sleep(0.02) or own(sequences)):
            for n, reply in made.run(leave()):
                stage.right(reply, n)
        stage.well(made)


def one_text_for_many(stage, chance):
    """A storm of equal requests, as OpenRLHF's client sends them again: computed once."""
    seen = []

    def run(own, sequences):
        seen.extend(sequences)
        servers.until(lambda: made.pipeline.batcher.counts.joined == 39, 60)  # the first runs until all have come
        return own(sequences)

    n = chance.randrange(faults.POOL)
    with stage.engine(run), stage.local() as made:
        stage.all(made, [n] * 40)
        assert len(seen) == 1


def small_behind_a_long_list(stage, chance):
    """A short request behind 512 answers does not wait for them (61 batches in `batched`)."""
    order, behind = [], threading.Event()

    def run(own, sequences):
        order.append([made.pipeline.model.parts.tokenizer.decode(one.ids) for one in sequences])
        assert behind.wait(60)  # the first batch runs until the short request stands in the queue
        return own(sequences)

    with stage.engine(run), stage.local(budget=256) as made:
        batcher, texts = made.pipeline.batcher, [f"{chance.random()}" for _ in range(256)]

        batcher.load._done = 500 * batcher.load._busy  # 500 tokens a second: its answers are due over seconds

        async def both():
            bulk = asyncio.ensure_future(
                made.client.post("/v1/reward", json={"prompt": "a long list", "candidates": texts})
            )
            while not order or batcher.waiting < len(texts) - len(order[0]):  # all of the list stands there
                await asyncio.sleep(0.001)
            before = batcher.waiting
            short = asyncio.ensure_future(made.client.post("/v1/reward", json=faults.body(5)))
            while batcher.waiting <= before:
                await asyncio.sleep(0.001)
            behind.set()
            return await short, await bulk

        reply, bulk = made.run(both())
        stage.right(reply, 5)
        assert bulk.status_code == 200 and len(servers.reward(bulk)) == len(texts)
        turn = next(place for place, texts in enumerate(order) if any("a long list" not in text for text in texts))
        assert len(order) > 10 and turn <= 3, (turn, len(order))


def too_much_work(stage, chance):
    """Ten times what it can do: 429 with Retry-After, or the right score; and then it is well."""

    def run(own, sequences):
        time.sleep(0.01)
        return own(sequences)

    with stage.engine(run), stage.local(longest_wait=0.05) as made:
        for n in range(6):
            made.ask("/v1/reward", faults.body(n))
        numbers = [n % faults.POOL for n in range(200)]
        for n, reply in zip(numbers, made.all("/v1/reward", [faults.body(n) for n in numbers]), strict=True):
            if reply.status_code == 429:
                assert int(reply.headers["retry-after"]) >= 1
                servers.error(reply)
            else:
                stage.right(reply, n)
        servers.until(lambda: made.pipeline.load.in_flight == 0)
        stage.well(made)


def clocks_jump(stage, chance):
    """The wall clock goes an hour on and back while requests run."""
    now = time.time

    def jumping():
        return now() + chance.choice([-3600, 0, 3600, 1e8])

    with mock.patch.object(time, "time", jumping), stage.local() as made:
        stage.all(made, _numbers(chance), headers={"x-request-timeout": "30"})
        stage.well(made)


def too_long_among_good(stage, chance):
    """Answers that are too long stand among good ones: each has its own error, and the others their scores."""
    with stage.local() as made:
        n = chance.randrange(faults.POOL)
        answers = ["z" * 4000 if chance.random() < 0.5 else str(n) for _ in range(12)] + [str(n)]
        found = made.ask("/v1/reward", {"prompt": faults.prompt(n), "candidates": answers}).json()["data"][0]
        for answer, own in zip(answers, found["candidates"], strict=True):
            assert ("error" in own) is (len(answer) == 4000)
            if "reward" in own:
                stage.near([own["reward"]], [n])


def wrong_bodies_among_good(stage, chance):
    """Bodies of every shape among good ones: 400, and nobody else notices."""
    wrong = [
        {"prompt": 1},
        {},
        {"prompt": "a", "candidates": []},
        {"prompt": None, "candidates": ["b"]},
        {"x": [{}] * 9},
    ]
    with stage.local() as made:
        numbers = _numbers(chance)
        bodies = [chance.choice(wrong) if chance.random() < 0.5 else faults.body(n) for n in numbers]
        for n, sent, reply in zip(numbers, bodies, made.all("/v1/reward", bodies), strict=True):
            if sent == faults.body(n):
                stage.right(reply, n)
            else:
                assert reply.status_code == 400 and servers.error(reply)


def closed_with_work(stage, chance):
    """It ends with work in its queue: all of it is answered (8 of 10 hang in `batched`)."""
    with stage.engine(lambda own, sequences: time.sleep(0.01) or own(sequences)):
        made = servers.Local(stage.model, longest_wait=float("inf"))
        numbers = _numbers(chance, 10)

        async def end():
            tasks = [asyncio.ensure_future(made.client.post("/v1/reward", json=faults.body(n))) for n in numbers]
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            await asyncio.to_thread(made.pipeline.close, 10.0)
            return await asyncio.gather(*tasks)

        for n, reply in zip(numbers, made.run(end()), strict=True):
            if reply.status_code != 503:
                stage.right(reply, n)
        made.run(made.client.aclose())
        made.loop.close()


def asked_after_the_end(stage, chance):
    """Who asks after the end gets an error at once (`batched` hangs for ever)."""
    made = servers.Local(stage.model)
    if chance.random() < 0.5:
        stage.well(made)
    made.pipeline.close(10.0)
    for _ in range(3):
        assert made.ask("/v1/reward", faults.body(1)).status_code in (429, 503)
    made.run(made.client.aclose())
    made.loop.close()


def loop_ends(stage, chance):
    """The event loop of some callers ends while their work is computed; the next loop is served."""
    pipeline = Pipeline(stage.model, longest_wait=float("inf"))
    rows = [[Example((Message("user", faults.prompt(n)),), str(n))] for n in range(8)]

    async def leave():
        for row in rows:
            asyncio.ensure_future(pipeline.score(row))  # noqa: RUF006
        await asyncio.sleep(chance.uniform(0.0, 0.01))

    with stage.engine(lambda own, sequences: time.sleep(0.01) or own(sequences)):
        asyncio.run(leave())

        async def ask():
            return await asyncio.wait_for(pipeline.score(rows[3]), 20)

        stage.near([own.value for own in asyncio.run(ask())], [3])
    pipeline.close(10.0)


def a_callback_raises(stage, chance):
    """Whoever is told of a result fails: nobody else has to wait for it."""
    from karat.engine._work import Work
    from karat.engine.batcher import Batcher

    batcher = Batcher(lambda payloads: [2 * p for p in payloads])
    wrong = chance.choice([RuntimeError("x"), SystemExit(1), ValueError()])

    def fail(_):
        raise wrong

    with contextlib.suppress(Exception):
        batcher.submit([Work(1, 1, 1)], fail)
    done = []
    for n in range(2, 6):
        batcher.submit([Work(n, n, 1)], done.append)
    servers.until(lambda: len(done) == 4)
    assert [t.results for t in done] == [[2 * n] for n in range(2, 6)]
    assert batcher.close(5.0)


def large_logits(stage, chance):
    """Logits of -60 and 40: a softmax stays a probability (TEI gives NaN)."""
    folder = stage.folder.parent / f"{stage.folder.name}-steps"
    if not folder.exists():
        toys.save(folder, toys.step_model())
    model = karat.load(str(folder), kind="process", step_token="\n")
    with torch.no_grad():
        model.parts.head.out.weight.mul_(chance.choice([1e3, 1e6]))
    wanted = model.score_steps("p", ["a", "b"]).steps
    assert all(0.0 <= p <= 1.0 for p in wanted)
    with stage.local(model) as made:
        found = made.ask("/v1/reward", {"prompt": "p", "candidates": [{"steps": ["a", "b"]}]}).json()
        got = found["data"][0]["candidates"][0]["steps"]
        if any(abs(a - b) > 1e-5 for a, b in zip(got, wanted, strict=True)):
            raise faults.WrongScore(f"{got} and not {wanted}")


def ranks_keep_their_documents(stage, chance):
    """Each document has its own score, in whatever order they come (infinity flattens several outputs)."""
    numbers = _numbers(chance, 8)
    n = numbers[0]
    documents = [str(n), *(f"{own}." for own in numbers[1:])]
    wanted = [own.value for own in stage.model.score(faults.prompt(n), documents, strict=True)]
    with stage.local() as made:
        for path in ("/rerank", "/v1/rerank", "/cohere/v2/rerank", "/jina/v1/rerank"):
            found = made.ask(path, {"query": faults.prompt(n), "documents": documents}).json()["results"]
            if any(abs(own["relevance_score"] - wanted[own["index"]]) > 1e-5 for own in found):
                raise faults.WrongScore(f"{path}: {found} and not {wanted}")
