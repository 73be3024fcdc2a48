"""Every row comes back once, whichever replicas die, hang or do not start; a stand-in for Ray decides what happens."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Ray

from karat.scaling._pool import AHEAD, Pool
from karat.scaling._replica import Ready
from karat.scaling._shards import Open, Resources, cut
from karat.types import BadInput, Example, Reward, as_messages


class Model:
    at_steps, fingerprint = False, "f"

    def score_many(self, examples):
        for example in examples:
            if "raise" in example.response:
                raise ValueError("no such answer")
            yield Reward(float(len(example.response)), tokens=1)


class Opened(Open):
    def __call__(self):
        return Model()


def scored(ray, answers, size=4, replicas=3):
    """What each answer got, by its place."""
    shards = cut([Example(as_messages(f"{i // 3}?"), answer) for i, answer in enumerate(answers)], size)
    pool = Pool(ray, Opened("m"), Resources(replicas, 1, 0))
    assert pool.first() == Ready("f", False)
    pool.grow(min(replicas, len(shards)))
    found = [
        (place, json.loads(line))
        for shard, lines in pool.run(shards)
        for place, line in zip(shard.places, lines, strict=True)
    ]
    assert sorted(place for place, _ in found) == list(range(len(answers)))
    return [line for _, line in sorted(found, key=lambda one: one[0])]


@settings(max_examples=60)
@given(st.data(), st.lists(st.sampled_from(["4", "12", "die", "raise"]), min_size=1, max_size=12))
def test_every_row_has_one_result_whoever_dies(data, answers):
    kills = [1]  # by chance, at most; more could put the blame on a row that is alone

    def dies(ref):
        # A worker may die of the next shard before its answer to this one has left it.
        if any(
            example.response == "die" for own in list(ref.actor.queue)[:2] if own.given for example in own.given[0].read
        ):
            return ref.name == "score"
        by_chance = bool(kills[0] and data.draw(st.integers(0, 5)) == 0)
        kills[0] -= by_chance
        return by_chance

    ray = Ray(lambda number: data.draw(st.integers(0, number - 1)), dies)
    for answer, found in zip(answers, scored(ray, answers), strict=True):
        if answer == "die":
            assert found["unscored"] == "a worker died each of the 3 times that it was scored; score it by itself"
        elif answer == "raise":
            assert found["unscored"] == "ValueError: no such answer" and found["reward"] is None
        else:
            assert found["reward"] == len(answer) and found["unscored"] is None
    assert ray.most <= AHEAD


def test_a_replica_that_hangs_holds_nothing_up():
    ray = Ray(hangs=lambda actor: actor is ray.actors[0] and len(ray.actors) == 3)
    assert [found["reward"] for found in scored(ray, ["4"] * 40)] == [1.0] * 40
    assert ray.empty == 0


def test_replicas_that_do_not_start_are_said(capsys):
    ray = Ray(dies=lambda ref: ref.name == "ready")
    with pytest.raises(BadInput, match=r"no replica of m starts: it died \(Its node has no model\.\); give fewer"):
        scored(ray, ["4"])
    assert len(ray.actors) == 3
    ray = Ray(dies=lambda ref: ref.name == "ready" and ref.actor is not ray.actors[0])
    assert len(scored(ray, ["4"] * 40)) == 40
    assert "going on with fewer replicas, as one does not start: it died" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_is_refused_as_by_one_process():
    class Missing(Open):
        def __call__(self):
            raise BadInput("there is no model at m; give another")

    with pytest.raises(BadInput, match="there is no model at m; give another"):
        Pool(Ray(), Missing("m"), Resources(2, 1, 0)).first()


def test_a_node_with_another_model_of_that_name_is_not_used(capsys):
    ray = Ray()

    class Differs(Model):
        @property
        def fingerprint(self):
            return "f" if ray.actors and self is ray.actors[0].replica._model else "g"

    class Both(Open):
        def __call__(self):
            return Differs()

    shards = cut([Example(as_messages(f"{i}?"), "4") for i in range(40)], 4)
    pool = Pool(ray, Both("m"), Resources(2, 1, 0))
    assert pool.first().fingerprint == "f"
    pool.grow(2)
    assert sum(len(lines) for _, lines in pool.run(shards)) == 40
    assert all(actor.dead for actor in ray.actors[1:]) and "holds another model" in capsys.readouterr().err


def test_a_cluster_without_room_is_waited_for_and_that_is_said_once(capsys):
    ray = Ray(hangs=lambda actor: ray.empty < 3)
    assert len(scored(ray, ["4"] * 5)) == 5
    assert capsys.readouterr().err.count("waiting for the cluster") == 1
