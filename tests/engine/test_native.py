"""Threads that one thread of a process computes with must not slow those of another."""

import os
import platform
import threading
import time

import pytest
import torch

import karat
import toys
from karat.engine import _native
from karat.serving._turns import Turns

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="counts the threads of /proc")
X = torch.ones(512, 512)  # enough for torch to share it out


def count():
    return len(os.listdir("/proc/self/task"))


def settles(at):
    end = time.monotonic() + 10
    while count() != at and time.monotonic() < end:
        time.sleep(0.01)
    return count() == at


def with_two():
    """Let torch share out what this thread computes, and no other, among two."""
    torch.get_num_threads()  # which takes over what is said for all, once
    _native.openmp().omp_set_num_threads(2)
    assert torch.get_num_threads() == 2


def in_thread(function):
    """In a thread that computes with two, which it has ended by itself when this returns."""
    failed = []

    def run():
        with_two()
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    before = -1
    while before != (before := count()):  # those that it computed with end a moment later
        time.sleep(0.05)
    if failed:
        raise failed[0]


@pytest.fixture(autouse=True)
def known():
    """Whatever starts threads of its own has started them."""
    in_thread(lambda: X.mul(2))


def test_threads_are_released_and_made_again():
    def run():
        before = count()
        assert X.mul(2).sum() == 2 * X.numel() and count() == before + 1
        _native.release_threads()
        assert settles(before)
        _native.release_threads()  # there is nothing left
        assert X.mul(3).sum() == 3 * X.numel() and count() == before + 1

    in_thread(run)


def test_loading_leaves_no_threads(tmp_path):
    folder = str(toys.save(tmp_path, toys.reward_model()))
    karat.load(folder)

    def run():
        before = count()
        model = karat.load(folder)
        assert settles(before)
        X.mul(2)  # a control: there could have been one
        assert count() == before + 1
        assert model.score("a", ["b"])[0].value is not None

    in_thread(run)


@pytest.mark.parametrize("threads, left", [(1, 1), (2, 0)])
def test_who_computes_by_turns_keeps_no_threads(threads, left):
    def run():
        before = count()
        with turns:
            X.mul(2)
            assert count() == before + 1
        assert settles(before + left)

    turns = Turns()
    turns.threads = threads
    in_thread(run)
