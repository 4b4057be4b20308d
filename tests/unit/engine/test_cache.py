import pytest
import torch

from app.engine import cache as cache_module
from app.engine.cache import MOST_MISSED, PhiCache
from app.engine.phi import Phi

SIZE = 4 * 10
"""Bytes of one φ here."""


def phi(value: float = 0.0, numbers: int = 10) -> Phi:
    return Phi(torch.full((numbers,), value), ways=2, rows=2)


def test_the_least_recently_used_goes_first():
    cache = PhiCache(3 * SIZE)
    for key in "abc":
        cache.put(key, phi())
    cache.get("a")
    cache.put("d", phi())
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("e", phi())
    assert [key for key in "abcde" if cache.get(key) is not None] == ["c", "d", "e"]
    assert cache.evictions == 2


def test_putting_a_key_again_replaces_its_phi_and_makes_it_recent():
    cache = PhiCache(2 * SIZE)
    cache.put("a", phi(1.0))
    cache.put("b", phi(2.0))
    cache.put("a", phi(3.0))
    assert (len(cache), cache.bytes) == (2, 2 * SIZE)
    cache.put("c", phi())
    assert cache.get("b") is None
    assert cache.get("a").vector[0] == 3.0


def test_it_never_holds_more_bytes_than_it_may_and_always_knows_how_many():
    cache = PhiCache(10 * SIZE)
    generator = torch.Generator().manual_seed(0)
    kept: dict[str, int] = {}
    for _ in range(500):
        number, numbers, action = torch.randint(1, 40, (3,), generator=generator).tolist()
        if action < 5:
            cache.drop(str(number))
            kept.pop(str(number), None)
        else:
            cache.put(str(number), phi(numbers=numbers))
            kept[str(number)] = 4 * numbers
        kept = {key: size for key, size in kept.items() if cache.get(key) is not None}
        assert cache.bytes == sum(kept.values()) <= cache.capacity_bytes
        assert len(cache) == len(kept)


def test_a_phi_larger_than_the_cache_is_not_kept_and_displaces_no_other():
    cache = PhiCache(2 * SIZE)
    cache.put("a", phi())
    cache.put("huge", phi(numbers=21))
    assert cache.get("huge") is None
    assert cache.get("a") is not None
    assert cache.evictions == 0


def test_a_phi_that_fills_the_cache_to_the_byte_is_kept():
    cache = PhiCache(2 * SIZE)
    cache.put("a", phi(numbers=20))
    assert cache.get("a") is not None


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = PhiCache(0)
    cache.put("a", phi())
    assert (len(cache), cache.bytes, cache.evictions) == (0, 0, 0)


def test_dropping_gives_the_bytes_back_and_is_no_eviction():
    cache = PhiCache(2 * SIZE)
    cache.put("a", phi())
    cache.drop("a")
    cache.drop("a")
    assert (len(cache), cache.bytes, cache.evictions) == (0, 0, 0)


def test_what_is_dropped_while_a_batch_puts_it_is_gone_after_the_batch():
    cache = PhiCache(9 * SIZE)
    with cache.batch():
        cache.drop("a")
        cache.put("a", phi())
        cache.put("b", phi())
        with cache.batch():
            cache.drop("c")
            cache.put("c", phi())
        assert cache.get("c") is None
        cache.put("c", phi(3.0))
    assert [key for key in "abc" if cache.get(key) is not None] == ["b"]
    with cache.batch():
        cache.put("a", phi())
    assert cache.get("a") is not None, "the drop was before"
    assert cache.bytes == 2 * SIZE


def test_what_a_failing_batch_was_to_forget_is_gone_too():
    cache = PhiCache(9 * SIZE)

    def fail() -> None:
        with cache.batch():
            cache.drop("a")
            cache.put("a", phi())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert cache.get("a") is None


def test_hits_and_misses_are_counted():
    cache = PhiCache(SIZE)
    cache.put("a", phi())
    for key in ("a", "b", "a", "c", "a"):
        cache.get(key)
    assert (cache.hits, cache.misses) == (3, 2)


def test_a_rebuild_lasts_from_the_first_miss_to_the_put_of_the_key(monkeypatch):
    now = 100.0
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: now)
    cache = PhiCache(3 * SIZE)
    cache.put("new", phi())
    for key in ("lost", "deleted"):
        assert cache.get(key) is None
    now = 102.0
    assert cache.get("lost") is None
    cache.drop("deleted")
    now = 105.0
    for key in ("lost", "deleted", "lost"):
        cache.put(key, phi())
    assert (cache.rebuilds, cache.rebuild_seconds) == (1, 5.0)


def test_no_more_misses_are_remembered_than_that():
    cache = PhiCache(SIZE)
    for number in range(MOST_MISSED + 1):
        cache.get(str(number))
    cache.put("0", phi())
    assert cache.rebuilds == 0, "the oldest is forgotten"
    cache.put(str(MOST_MISSED), phi())
    assert cache.rebuilds == 1
