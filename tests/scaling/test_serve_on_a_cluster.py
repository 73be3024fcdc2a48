"""`karat serve --ray` before there is a cluster."""

import sys
from types import SimpleNamespace

import pytest

from karat.scaling._shards import Resources
from karat.scaling.ray_serve import Scale, _scaling
from karat.types import BadInput


def test_bad_usage_and_a_missing_ray(karat, monkeypatch):
    for option in ("--replicas", "--max-replicas"):
        code, _, err = karat("serve", "model", "--port", "0", option, "3")
        assert code == 2 and "--ray" in err
    code, _, err = karat("serve", "model", "--port", "0", "--ray", "local", "--replicas", "3", "--max-replicas", "2")
    assert code == 1 and err == (
        "karat: --max-replicas is less than --replicas; give at least as many, or leave it out\n"
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = karat("serve", "model", "--port", "0", "--ray", "local")
    assert code == 1 and err == "karat: serving on a cluster needs Ray; install it with `pip install 'karat[ray]'`\n"


def test_a_cluster_that_is_not_there(karat, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    for address in ("127.0.0.1:1", "nowhere", "127.0.0.1:port", ":1"):
        code, _, err = karat("serve", "model", "--port", "0", "--ray", address)
        assert code == 1 and err.startswith(f"karat: there is no Ray cluster at {address} (") and err.count("\n") == 1


def test_so_many_replicas_or_as_many_as_the_work_wants():
    resources = Resources(4, 1, 0)
    assert _scaling(resources, Scale(4)) == {"num_replicas": 4}
    told = _scaling(resources, Scale(2, 4))["autoscaling_config"]
    assert (told["min_replicas"], told["max_replicas"]) == (2, 4)
    assert _scaling(resources, Scale(None, 4))["autoscaling_config"]["min_replicas"] == 1
    with pytest.raises(BadInput, match="--max-replicas"):
        Scale(None, 0).check()
