from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from app.engine.queue import Batch, Entry, WorkQueue
from app.errors import Draining, QueueFull
from tests.unit.engine.helpers import CONV, SECONDS, frames

MOST = 1000
"""Cost of what may be done at the same time; here it is less."""


def entry(name: str, shape: str = "x", cost: int = 1, owner: str = "") -> Entry:
    return Entry(CONV, name, None, shape, cost, owner)


def filled(*entries: Entry) -> WorkQueue:
    queue = WorkQueue(100, MOST)
    for each in entries:
        queue.put(each)
    return queue


def names(batch: Batch | None) -> list[str]:
    return [each.phi_key for each in batch.entries] if batch else []


def test_entries_of_one_shape_come_together_in_order_up_to_the_most():
    queue = filled(*(entry(name) for name in "abcde"))
    assert names(queue.next_batch(3, 100)) == ["a", "b", "c"]
    assert names(queue.next_batch(3, 100)) == ["d", "e"]


def test_other_shapes_keep_their_place_at_the_front():
    queue = filled(entry("a"), entry("b", "y"), entry("c"), entry("d", "z"), entry("e", "y"))
    assert names(queue.next_batch(9, 100)) == ["a", "c"]
    assert names(queue.next_batch(9, 100)) == ["b", "e"]
    assert names(queue.next_batch(9, 100)) == ["d"]


def test_a_batch_stays_within_its_cost():
    queue = filled(entry("a", cost=4), entry("b", cost=5), entry("c", cost=7), entry("d", cost=1))
    assert names(queue.next_batch(9, 10)) == ["a", "b", "d"]
    assert names(queue.next_batch(9, 10)) == ["c"]


def test_an_entry_beyond_the_cost_of_a_batch_comes_alone():
    queue = filled(entry("a"), entry("huge", cost=99), entry("b"))
    assert names(queue.next_batch(9, 10)) == ["a", "b"]
    queue.put(entry("c", cost=0))
    assert names(queue.next_batch(9, 10)) == ["huge"]
    assert names(queue.next_batch(9, 10)) == ["c"]


def test_owners_take_turns_however_much_one_of_them_sends():
    queue = filled(*(entry(f"a{n}", owner="a") for n in range(4)), entry("b0", owner="b"))
    assert names(queue.next_batch(1, 100)) == ["a0"]
    queue.put(entry("c0", owner="c"))
    assert [names(queue.next_batch(1, 100)) for _ in range(5)] == [
        ["b0"], ["a1"], ["c0"], ["a2"], ["a3"],
    ]  # fmt: skip


def test_places_in_a_batch_are_dealt_out_by_turns_and_who_sends_much_fills_what_is_left():
    sent = [entry(f"a{n}", owner="a") for n in range(5)]
    queue = filled(
        *sent, entry("b0", owner="b"), entry("b1", "y", owner="b"), entry("b2", owner="b")
    )
    assert names(queue.next_batch(5, 100)) == ["a0", "b0", "a1", "b2", "a2"]
    assert names(queue.next_batch(5, 100)) == ["b1"], "b was served before a was the last time"
    assert names(queue.next_batch(5, 100)) == ["a3", "a4"]


def test_in_a_full_queue_those_who_have_gone_make_room():
    queue, gone = WorkQueue(2, MOST), entry("gone", owner="a")
    for each in (gone, entry("here", owner="b")):
        queue.put(each)
    gone.future.cancel()
    queue.put(entry("new", owner="b"))
    with pytest.raises(QueueFull):
        queue.put(entry("too many", owner="b"))
    assert names(queue.next_batch(9, 100)) == ["here", "new"]


def test_in_a_full_queue_who_has_most_gives_way_until_all_have_as_many():
    queue, many = WorkQueue(4, MOST), [entry(f"a{number}", owner="a") for number in range(4)]
    for each in many:
        queue.put(each)
    queue.put(entry("b0", owner="b"))
    queue.put(entry("b1", owner="b"))
    for owner in "ab":
        with pytest.raises(QueueFull):
            queue.put(entry("too many", owner=owner))
    with pytest.raises(QueueFull, match="4 requests wait"):
        many[3].future.result(0)
    queue.put(entry("c0", owner="c"))
    taken = sorted(names(queue.next_batch(9, 100)))
    assert taken == ["a0", "b0", "b1", "c0"], "the first of those who have as many"


def test_a_caller_who_has_gone_gives_way_without_a_word():
    queue, gone = WorkQueue(2, MOST), entry("gone", owner="a")
    queue.put(entry("here", owner="a"))
    queue.put(gone)
    queue._drop_gone = gone.future.cancel  # who leaves after those who have gone are looked for
    queue.put(entry("new", owner="b"))
    assert names(queue.next_batch(9, 100)) == ["here", "new"]
    assert gone.future.cancelled()


def test_callers_who_have_gone_are_skipped_and_the_others_can_no_longer_go():
    gone, here, late = entry("gone"), entry("here"), entry("late")
    queue = filled(gone, here, late)
    assert gone.future.cancel()
    assert late.future.cancel()
    assert names(queue.next_batch(9, 100)) == ["here"]
    assert not here.future.cancel()
    with pytest.raises(CancelledError):
        gone.future.result(0)


def test_a_queue_of_callers_who_have_gone_waits_for_one_who_has_not():
    gone = entry("gone")
    queue = filled(gone)
    gone.future.cancel()
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(queue.next_batch, 9, 100)
        queue.put(entry("here"))
        assert names(batch.result(SECONDS)) == ["here"]


def test_beyond_the_limit_a_request_is_refused_and_after_a_batch_there_is_room_again():
    queue = WorkQueue(2, MOST)
    queue.put(entry("a"))
    queue.put(entry("b"))
    with pytest.raises(QueueFull, match="2 requests wait"):
        queue.put(entry("c"))
    assert len(queue) == 2
    queue.next_batch(1, 100)
    queue.put(entry("d"))
    assert names(queue.next_batch(9, 100)) == ["b", "d"]


def test_a_closed_queue_refuses_new_work_gives_what_waits_and_then_none():
    queue = filled(entry("a"))
    queue.close(Draining("closing"))
    with pytest.raises(Draining, match="closing"):
        queue.put(entry("b"))
    assert names(queue.next_batch(9, 100)) == ["a"]
    assert queue.next_batch(9, 100) is None


def test_closing_wakes_a_waiting_thread():
    queue = WorkQueue(1, MOST)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(queue.next_batch, 9, 100)
        queue.close(Draining("closing"))
        assert batch.result(SECONDS) is None


def test_failing_all_ends_every_future_and_leaves_cancelled_ones():
    entries = [entry(name) for name in "abc"]
    queue = filled(*entries)
    entries[1].future.cancel()
    queue.fail_all(Draining("closing"))
    assert len(queue) == 0
    assert entries[1].future.cancelled()
    for each in (entries[0], entries[2]):
        with pytest.raises(Draining):
            each.future.result(0)


def test_refusing_a_thousand_times_keeps_no_trace_of_each():
    queue, reason = WorkQueue(1, MOST), Draining("closing")
    queue.close(reason)
    for _ in range(1000):
        with pytest.raises(Draining):
            queue.put(entry("a"))
    assert frames(reason) < 10
