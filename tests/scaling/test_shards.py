"""Which rows go together on a cluster, and what a replica takes of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.scaling._shards import Shard, cut, share_out
from karat.types import BadInput, Example, Unscored, as_messages


def answers(prompts):
    return [Unscored("no text") if p is None else Example(as_messages(p), f"answer {i}") for i, p in enumerate(prompts)]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([None, "a", "b", "ab", "c"]), max_size=40), st.integers(1, 9))
def test_every_row_is_in_one_shard(prompts, size):
    read = answers(prompts)
    shards = cut(read, size)
    assert sorted(place for shard in shards for place in shard.places) == list(range(len(read)))
    assert all(len(shard.places) == len(shard.read) <= size for shard in shards)
    assert all(read[place] is own for shard in shards for place, own in zip(shard.places, shard.read, strict=True))
    assert shards == cut(read, size) and [shard.number for shard in shards] == list(range(len(shards)))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "ab", "c", "d"]), max_size=30))
def test_the_answers_to_a_prompt_go_to_one_replica(prompts):
    homes = {}
    for number, shard in enumerate(cut(answers(prompts), 30)):
        for place in shard.places:
            homes.setdefault(prompts[place], set()).add(number)
    assert all(len(shards) == 1 for shards in homes.values())


def test_halves_are_the_whole():
    first, second = Shard(3, (4, 2, 7), tuple(answers("xyz"))).halves()
    assert first.places + second.places == (4, 2, 7) and len(first.read) == 1 and first.number == second.number == 3


def node(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


@pytest.mark.parametrize(
    "nodes, replicas, wanted",
    [
        ([node(1), node(1)], None, (2, 1, 0)),
        ([node(16), node(16), node(8, alive=False)], None, (2, 16, 0)),
        ([node(16), node(16)], 3, (3, 8, 0)),  # 10 would fit twice only
        ([node(8, 4), node(8, 4)], None, (8, 1, 1)),
        ([node(8, 4)], 2, (2, 1, 1)),
        ([node(0), node(4)], None, (1, 4, 0)),
        ([node(8, 1), node(64)], None, (1, 1, 1)),
    ],
)
def test_what_a_replica_takes(nodes, replicas, wanted):
    assert share_out(nodes, replicas) == wanted


def test_more_replicas_than_there_is_room_for_are_refused():
    with pytest.raises(BadInput, match="has 2 CPUs and no GPU, too few for 3 replicas; give fewer --replicas"):
        share_out([node(1), node(1)], 3)
    with pytest.raises(BadInput, match="has 4 GPUs, too few for 5 replicas"):
        share_out([node(8, 4)], 5)
