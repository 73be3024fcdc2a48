"""The batcher's promises: every caller is answered once, budgets hold, nobody starves, faults stay where they are."""

import threading
import time

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import toys
from karat import types
from karat.engine import batcher as module
from karat.engine._load import Load, Overloaded
from karat.engine._work import Closed, Failed, Late, Work, prefixes
from karat.engine.base import EngineError, States
from karat.engine.batcher import BatchedEngine, Batcher
from karat.engine.probe import choose


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def doubled(payloads):
    return [2 * p for p in payloads]


def work(number, tokens=10, blocks=()):
    return Work(number, number, tokens, blocks)


def by_hand(run=doubled, budget=100, **options):
    clock = Clock()
    return Batcher(run, budget, clock=clock, threaded=False, **options), clock


def submitted(batcher, pieces, **options):
    done = []
    ticket = batcher.submit(pieces, done.append, **options)
    return ticket, done


def run_out(batcher):
    while batcher.step():
        pass


def test_results_come_in_the_order_of_the_work():
    batcher, _ = by_hand()
    ticket, done = submitted(batcher, [work(n) for n in range(25)])
    run_out(batcher)
    assert ticket.results == [2 * n for n in range(25)]
    assert done == [ticket]
    assert batcher.counts.batches == 3  # 100 tokens hold ten


def test_equal_work_in_flight_is_done_once():
    seen = []
    batcher, _ = by_hand(lambda payloads: seen.extend(payloads) or doubled(payloads))
    tickets = [submitted(batcher, [work(7), work(8)])[0] for _ in range(3)]
    run_out(batcher)
    assert sorted(seen) == [7, 8]
    assert [t.results for t in tickets] == [[14, 16]] * 3
    assert batcher.counts.joined == 4


def test_work_that_is_running_is_joined_as_well():
    late = []

    def run(payloads):
        if not late:
            late.append(submitted(batcher, [work(1)])[0])
        return doubled(payloads)

    batcher, _ = by_hand(run)
    ticket, _ = submitted(batcher, [work(1)])
    run_out(batcher)
    assert ticket.results == late[0].results == [2]
    assert batcher.counts.batches == 1


def test_a_batch_costs_its_distinct_prefixes():
    prompt = tuple(range(64))
    sequences = [(*prompt, *range(100 + n, 116 + n)) for n in range(5)]
    batcher, _ = by_hand(lambda payloads: [0] * len(payloads), budget=64 + 5 * 16)
    submitted(batcher, [Work(n, n, len(s), prefixes(s)) for n, s in enumerate(sequences)])
    run_out(batcher)
    assert batcher.counts.batches == 1
    assert batcher.counts.tokens == 64 + 5 * 16
    assert batcher.counts.shared_tokens == 4 * 64


def test_answers_to_one_prompt_meet_across_callers():
    batches = []
    batcher, _ = by_hand(lambda payloads: batches.append(list(payloads)) or payloads, budget=80)
    blocks = {"a": prefixes(range(32)), "b": prefixes(range(50, 82))}
    for n in range(6):
        name = "ab"[n % 2]
        submitted(batcher, [Work(f"{name}{n}", f"{name}{n}", 40, blocks[name])])
    run_out(batcher)
    assert batches[0] == ["a0", "a2", "a4"]  # 40 + 8 + 8 tokens; another prompt's 40 do not fit


def test_a_small_request_does_not_wait_for_a_long_list():
    order = []
    batcher, clock = by_hand(lambda payloads: order.extend(payloads) or payloads, budget=80)
    batcher.load.start(0, clock.now)
    submitted(batcher, [work(n) for n in range(512)])
    clock.now += 0.001
    submitted(batcher, [work("small")])
    for _ in range(3):
        batcher.step()
    assert "small" in order


def test_one_bad_piece_of_64_fails_alone():
    calls = []

    def run(payloads):
        calls.append(len(payloads))
        if 13 in payloads:
            raise ValueError("bad piece")
        return doubled(payloads)

    batcher, _ = by_hand(run, budget=10_000)
    ticket, _ = submitted(batcher, [work(n) for n in range(64)])
    run_out(batcher)
    assert isinstance(ticket.results[13], Failed) and "bad piece" in str(ticket.results[13])
    assert [r for n, r in enumerate(ticket.results) if n != 13] == [2 * n for n in range(64) if n != 13]
    assert len(calls) <= 1 + 2 * 6


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), RuntimeError("x"), ZeroDivisionError()]
)
def test_whatever_is_raised_callers_are_answered(error):
    def run(payloads):
        raise error

    batcher, _ = by_hand(run)
    ticket, done = submitted(batcher, [work(1), work(2)])
    run_out(batcher)
    assert done and all(isinstance(r, Failed) for r in ticket.results)


@pytest.mark.parametrize("found", [[], [1], [1, 2, 3, 4]])
def test_a_wrong_number_of_results_is_an_error(found):
    batcher, _ = by_hand(lambda payloads: found if len(payloads) > 1 else [*found, 0, 0])
    ticket, _ = submitted(batcher, [work(1), work(2)])
    run_out(batcher)
    assert all(isinstance(r, Failed) and "results for" in str(r) for r in ticket.results)


def test_out_of_memory_halves_the_batch_and_it_grows_again():
    def run(payloads):
        if len(payloads) > 3:
            raise torch.OutOfMemoryError("too much")
        return doubled(payloads)

    batcher, _ = by_hand(run, budget=160)
    ticket, _ = submitted(batcher, [work(n) for n in range(64)])
    run_out(batcher)
    assert ticket.results == [2 * n for n in range(64)]
    assert batcher.counts.failed == 0
    assert batcher._budget < 80
    batcher._run = doubled
    for n in range(40):
        submitted(batcher, [work(1000 + n)])
        run_out(batcher)
    assert batcher._budget == 160


def test_what_nobody_waits_for_is_not_begun():
    seen = []
    batcher, clock = by_hand(lambda payloads: seen.extend(payloads) or doubled(payloads))
    left, _ = submitted(batcher, [work(1)])
    late, _ = submitted(batcher, [work(2)], deadline=clock.now + 1)
    kept, _ = submitted(batcher, [work(1), work(3)])
    left.cancel()
    clock.now += 2
    run_out(batcher)
    assert sorted(seen) == [1, 3]
    assert isinstance(late.results[0], Late)
    assert kept.results == [2, 6]


def test_1000_of_2000_leave_and_are_not_computed():
    seen = []
    batcher, _ = by_hand(lambda payloads: seen.extend(payloads) or doubled(payloads))
    tickets = [submitted(batcher, [work(n)])[0] for n in range(2000)]
    for ticket in tickets[::2]:
        ticket.cancel()
    run_out(batcher)
    assert len(seen) == 1000


def test_the_device_is_gone():
    def run(payloads):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    batcher, _ = by_hand(run, budget=20)
    tickets = [submitted(batcher, [work(n)])[0] for n in range(5)]
    run_out(batcher)
    assert all(isinstance(t.results[0], Closed) for t in tickets)
    assert batcher.broken
    with pytest.raises(Closed):
        submitted(batcher, [work(9)])


def test_no_work_is_taken_at_the_end_and_what_was_taken_is_done():
    batcher = Batcher(doubled)
    done = threading.Semaphore(0)
    tickets = [batcher.submit([work(n)], lambda _: done.release()) for n in range(100)]
    assert batcher.close(10)
    assert [t.results for t in tickets] == [[2 * n] for n in range(100)]
    began = time.perf_counter()
    with pytest.raises(Closed):
        batcher.submit([work(1)], print)
    assert time.perf_counter() - began < 0.01


def test_an_end_that_takes_too_long_answers_those_who_wait():
    gate = threading.Event()
    batcher = Batcher(lambda payloads: gate.wait(10) and payloads, budget=10)
    tickets = [batcher.submit([work(n)], lambda _: None) for n in range(3)]
    assert not batcher.close(0.2)
    assert isinstance(tickets[2].results[0], Closed)
    gate.set()


def test_nothing_to_do_is_done_by_sleeping():
    batcher = Batcher(doubled)
    before = time.thread_time_ns(), time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before[1] < 0.05
    batcher.close(5)


def test_no_work_at_all_is_done_at_once():
    batcher, _ = by_hand()
    ticket, done = submitted(batcher, [])
    assert done == [ticket] and ticket.results == []


def test_work_that_would_wait_too_long_is_refused():
    batcher, clock = by_hand(longest_wait=1.0)
    for n in range(50):
        submitted(batcher, [work(n, tokens=100)])
        clock.now += 0.1  # a thousand tokens per second
        batcher.step()
    with pytest.raises(Overloaded) as refused:
        for n in range(100, 200):
            submitted(batcher, [work(n, tokens=100)])
    assert refused.value.retry_after >= 1
    assert 5 <= batcher.waiting <= 25


def test_the_rate_is_learnt_while_there_is_work():
    load = Load()
    now = 0.0
    for _ in range(200):
        load.start(50, now)
        now += 0.1
        load.stop(50, now)
        now += 5.0  # idle
    assert load.rate == pytest.approx(500, rel=0.05)
    load.start(1000, now)
    assert load.wait() == pytest.approx(2.0, rel=0.05)


def test_clocks_that_go_back_do_no_harm():
    load = Load()
    load.start(10, 100.0)
    load.stop(10, 50.0)
    load.start(10, 200.0)
    assert load.wait() < 1e6


def test_an_engine_for_many_threads():
    engine = choose(toys.backbone())
    own = [types.Sequence((*range(3, 30), n), {"last": (27,)}) for n in range(24)]
    wanted = [engine.run([one])[0]["last"] for one in own]
    engine.clear()
    everyone, begun = threading.Event(), []

    def run(sequences):  # the first batch lasts until all have asked
        begun.extend(sequences)
        everyone.wait(20)
        return engine.run(sequences)

    shared = BatchedEngine(Batcher(run))
    found = {}

    def ask(n):
        found[n] = shared.run([own[n]])[0]["last"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    while len(begun) + shared.batcher.waiting < 24:
        time.sleep(0.001)
    everyone.set()
    for thread in threads:
        thread.join(20)
    for n, states in enumerate(wanted):
        torch.testing.assert_close(found[n], states, atol=1e-5, rtol=1e-5)
    assert shared.batcher.counts.batches <= 2
    with pytest.raises(EngineError, match="vocabulary"):
        shared.run([types.Sequence((99999,), {"last": (0,)})])
    assert isinstance(shared.run([own[0]])[0], States)
    shared.batcher.close(5)


class Machine(RuleBasedStateMachine):
    """Any order of arrivals, departures, time and batches, with some work that fails."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.sizes = []
        self.batcher = Batcher(self.run, budget=60, clock=self.clock, threaded=False)
        self.tickets, self.answered, self.steps = [], [], 0

    def run(self, payloads):
        self.clock.now += 0.01 * len(payloads)
        if any(p % 7 == 3 for p in payloads):
            raise ValueError("seven and three")
        self.sizes.append(sum(10 + p % 20 for p in payloads) if len(payloads) > 1 else 0)
        return doubled(payloads)

    @rule(numbers=st.lists(st.integers(0, 40), max_size=6), patience=st.one_of(st.none(), st.floats(0.0, 0.2)))
    def arrive(self, numbers, patience):
        deadline = None if patience is None else self.clock.now + patience
        pieces = [work(n, tokens=10 + n % 20) for n in numbers]
        ticket = self.batcher.submit(pieces, self.answered.append, deadline)
        self.tickets.append((ticket, numbers, self.steps))

    @precondition(lambda self: self.tickets)
    @rule(place=st.integers(0, 1000))
    def leave(self, place):
        self.tickets[place % len(self.tickets)][0].cancel()

    @rule(seconds=st.floats(0.0, 0.5))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def step(self):
        waiting = self.batcher.waiting
        assert self.batcher.step() is (waiting > 0)
        self.steps += 1

    @invariant()
    def nobody_is_answered_twice(self):
        assert len({id(t) for t in self.answered}) == len(self.answered)

    @invariant()
    def budgets_hold(self):
        assert all(size <= 60 for size in self.sizes)

    def teardown(self):
        for _ in range(10_000):
            if not self.batcher.step():
                break
        assert len(self.answered) == len(self.tickets)
        for ticket, numbers, _ in self.tickets:
            for number, result in zip(numbers, ticket.results, strict=True):
                if isinstance(result, Late):
                    assert ticket.cancelled or ticket.deadline is not None
                elif number % 7 == 3:
                    assert isinstance(result, Failed)
                else:
                    assert result == 2 * number
        assert self.batcher.waiting == 0 and not self.batcher._known and self.batcher.load.in_flight == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25)


@pytest.mark.full
def test_ten_thousand_runs_of_any_order():
    run_state_machine_as_test(Machine, settings=settings(max_examples=10_000, stateful_step_count=25))


def test_negative_control_a_batcher_that_zips_loses_callers(monkeypatch):
    """What the `batched` package does: results are zipped with inputs, so that missing ones never arrive."""
    monkeypatch.setattr(Batcher, "_called", lambda self, batch: [*self._run([p.work.payload for p in batch])])
    monkeypatch.setattr(module, "zip", lambda *both, strict: zip(*both, strict=False), raising=False)
    batcher, _ = by_hand(lambda payloads: [0])
    _, done = submitted(batcher, [work(1), work(2)])
    run_out(batcher)
    assert not done
