"""Scoring a file on a Ray cluster: shards of whole prompts to replicas of the model, results in the rows' order.

Only the process that was started writes: a shard is there whole or not at all, whichever workers die. A shard that
takes its workers with it is halved until the row is found that does.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from karat.formats import base as formats
from karat.models.backbone import first_line
from karat.progress import track
from karat.rewards import _offline
from karat.scaling._cluster import connect
from karat.scaling._pool import Pool
from karat.scaling._shards import Open, Shard, cut, share_out
from karat.types import BadInput

SHARD = 512  # rows: what the death of a worker can cost, and enough for a replica to share prefixes


def score_file(
    opened: Open, data: str, output: Path, address: str = "local", replicas: int | None = None
) -> dict[str, Any]:
    """Score a data file into `output` on the cluster at `address`; see `karat.rewards._offline.score_file`.

    Args:
        opened: the model, which every node has to find under the same name.
        data: the rows.
        output: the file to write.
        address: of a running cluster, HOST:PORT, or "local" for one on this machine.
        replicas: of the model; None is one for each GPU, or for each node where there are no GPUs.

    Raises:
        BadInput: what `_offline.begin` raises, no Ray, or a cluster that cannot be reached.
        Refused, CheckpointError: the model cannot be opened there.
    """
    _offline.check_output(output)
    settings = {"model": opened.model, "deterministic": opened.deterministic, **opened.options, "shard": SHARD}
    ray = connect(address)
    try:
        resources = share_out(ray.nodes(), replicas)
        pool = Pool(ray, opened.from_anywhere(), resources)
        job = _offline.begin(data, output, {**settings, "scorer": pool.first().fingerprint})
        shards = cut(list(job.examples()), SHARD)
        _score_rest(pool, job, shards, resources.replicas)
    except ray.exceptions.RayError as error:
        raise BadInput(
            f"the cluster at {address} ended ({first_line(error)}); give the same command again to go on"
        ) from None
    finally:
        ray.shutdown()
    return _offline.finish(job, _results(job, shards).__iter__)


def _score_rest(pool: Pool, job: _offline.Job, shards: Sequence[Shard], replicas: int) -> None:
    """Score the shards that no part holds yet, each into its part."""
    rest = [shard for shard in shards if not _offline.part_path(job.parts, shard.number).exists()]
    before = len(job.rows) - sum(len(shard.places) for shard in rest)
    _offline.say_before(before, len(job.rows))
    pool.grow(min(replicas, len(rest)))
    found = track(pool.run(rest), len(job.rows), "scored", before, lambda piece: len(piece[1]))
    for shard, lines in _whole(found, shards):
        formats.write_lines(lines, str(_offline.part_path(job.parts, shard.number)))


def _whole(found: Iterable[tuple[Shard, list[str]]], shards: Sequence[Shard]) -> Iterator[tuple[Shard, list[str]]]:
    """Each shard with its rows' lines, as soon as all of its pieces are there."""
    partly: dict[int, dict[int, str]] = {}
    for piece, lines in found:
        there = partly.setdefault(piece.number, {})
        there.update(zip(piece.places, lines, strict=True))
        shard = shards[piece.number]
        if len(there) == len(shard.places):
            yield shard, [there[place] for place in shard.places]
            del partly[piece.number]


def _results(job: _offline.Job, shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """What each row got, in their order."""
    found: list[dict[str, Any]] = [{}] * len(job.rows)
    for shard in shards:
        results = _offline.read_part(_offline.part_path(job.parts, shard.number))
        for place, result in zip(shard.places, results, strict=True):
            found[place] = result
    return found
