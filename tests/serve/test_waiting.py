"""The queue: its bound, its order, and places that are given up."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.waiting import THREADS, RequestQueue


def test_one_runs_and_the_next_ones_wait_in_order() -> None:
    queue = RequestQueue(running=1, waiting=3)
    places = [queue.enter() for _ in range(4)]
    assert [place.ahead() for place in places] == [0, 1, 2, 3]
    places[0].leave()
    assert [place.ahead() for place in places[1:]] == [0, 1, 2]


def test_several_may_run() -> None:
    queue = RequestQueue(running=2, waiting=2)
    places = [queue.enter() for _ in range(4)]
    assert [place.ahead() for place in places] == [0, 0, 2, 3]
    places[1].leave()
    assert [place.ahead() for place in (places[0], *places[2:])] == [0, 0, 2]


def test_the_one_too_many_hears_how_many_wait() -> None:
    queue = RequestQueue(running=1, waiting=2)
    places = [queue.enter() for _ in range(3)]
    with pytest.raises(ServeError, match=r"^busy, 2 waiting") as caught:
        queue.enter()
    assert caught.value.code == "busy" and len(queue) == 3
    places[2].leave()
    assert queue.enter().ahead() == 2


def test_nobody_may_wait() -> None:
    queue = RequestQueue(running=1, waiting=0)
    first = queue.enter()
    with pytest.raises(ServeError, match=r"^busy, 0 waiting"):
        queue.enter()
    first.leave()
    assert queue.enter().ahead() == 0


def test_who_gives_up_lets_the_others_move_up() -> None:
    queue = RequestQueue(running=1, waiting=3)
    places = [queue.enter() for _ in range(4)]
    places[1].leave()
    assert [place.ahead() for place in places[2:]] == [1, 2]
    places[0].leave()
    assert [place.ahead() for place in places[2:]] == [0, 1]


def test_leaving_twice_frees_one_place() -> None:
    queue = RequestQueue(running=1, waiting=2)
    first, second = queue.enter(), queue.enter()
    first.leave()
    first.leave()
    assert len(queue) == 1 and second.ahead() == 0


def test_the_turn_wakes_who_waits_for_it() -> None:
    queue = RequestQueue(running=1, waiting=1)
    first, second = queue.enter(), queue.enter()
    began = time.monotonic()
    assert second.ahead(0.05) == 1
    assert time.monotonic() - began >= 0.05
    threading.Timer(0.1, first.leave).start()
    assert second.ahead(30) == 0
    assert time.monotonic() - began < 20


def test_every_coming_and_going_is_told_with_the_new_count() -> None:
    counts: list[int] = []
    queue = RequestQueue(running=1, waiting=1, changed=lambda: counts.append(len(queue)))
    first, second = queue.enter(), queue.enter()
    with pytest.raises(ServeError):
        queue.enter()
    second.leave()
    first.leave()
    first.leave()
    assert counts == [1, 2, 1, 0]


@pytest.mark.parametrize(("running", "waiting"), [(0, 4), (1, -1), (1, THREADS), (THREADS + 1, 0)])
def test_a_bound_that_the_server_cannot_keep(running: int, waiting: int) -> None:
    with pytest.raises(ValueError, match=f"{running} running and {waiting} waiting requests: give"):
        RequestQueue(running, waiting)


def test_many_threads_never_run_more_than_allowed() -> None:
    queue = RequestQueue(running=2, waiting=20)
    at_once: list[int] = []
    inside, lock = 0, threading.Lock()

    def visit(seed: int) -> None:
        nonlocal inside
        place = queue.enter()
        if random.Random(seed).random() < 0.3:
            place.leave()
            return
        while place.ahead():
            place.ahead(1)
        with lock:
            inside += 1
            at_once.append(inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        place.leave()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(visit, range(60)))
    assert max(at_once) == 2 and len(at_once) > 30 and len(queue) == 0
