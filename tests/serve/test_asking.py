"""Questions to one or two models at once: streams, context, stop, and what is left when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from llava_ultra_ext.serve.client import Piece, Question
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.page.asking import Choices, Conversation, ask_lanes
from llava_ultra_ext.serve.page.store import ExamStore


class Told:
    """A client whose answers are told beforehand; a model named `slow` never ends."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.closed: list[str] = []

    async def models(self) -> list[str]:
        return ["one", "two"]

    async def ask(self, question: Question) -> AsyncIterator[Piece]:
        self.asked.append(question)
        try:
            yield Piece(waiting=2)
            if question.model == "broken":
                raise ServeError("out_of_memory", "No memory.")
            if question.model == "bug":
                raise RuntimeError("WANG^XIAOMING")
            for end in range(1, 4):
                yield Piece(text="结节。"[:end], chosen=(1,), scores=(-0.5, -0.25), alpha=0.497)
                await asyncio.sleep(0)
            if question.model == "slow":
                await asyncio.sleep(60)
        finally:
            self.closed.append(question.model)


def ask(client: Told, lanes: list[Conversation], models: list[str], text: str = "问？") -> list[str]:
    """Asks to the end; the states of the last turns at each update."""

    async def run() -> list[str]:
        seen = []
        async for _ in ask_lanes(client, lanes, models, text, [b"1", b"2"], Choices()):
            seen.append("".join(lane.turns[-1].state[0] for lane in lanes))
        return seen

    return asyncio.run(run())


def test_both_lanes_are_asked_the_same_and_keep_their_own_turns() -> None:
    client, lanes = Told(), [Conversation(), Conversation()]
    assert ask(client, lanes, ["one", "two"])[-1] == "dd"
    assert ask(client, lanes, ["one", "broken"], "再问？")[-1] == "df"
    assert ask(client, lanes, ["one", "two"], "三问？")[-1] == "dd"
    assert [question.turns for question in client.asked[-2:]] == [
        (("问？", "结节。"), ("再问？", "结节。"), ("三问？", None)),
        (("问？", "结节。"), ("三问？", None)),  # a question that failed is no context
    ]
    assert all(question.images == (b"1", b"2") and question.heat for question in client.asked)
    first = lanes[0].turns[0]
    assert first.first_seconds is not None and first.first_seconds <= (first.total_seconds or 0)


def test_stop_closes_the_answer_at_the_worker_and_keeps_what_came() -> None:
    client, lane = Told(), Conversation()

    async def run() -> None:
        async for _ in ask_lanes(client, [lane], ["slow"], "问？", [], Choices()):
            if lane.turns[-1].answer == "结节。":
                lane.stop()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert client.closed == ["slow"] and not lane.running
    assert (lane.turns[-1].state, lane.turns[-1].answer) == ("stopped", "结节。")
    ask(client, [lane], ["one"], "再问？")
    assert client.asked[-1].turns[0] == ("问？", "结节。")


def test_a_stop_before_the_first_step_ends_the_wait() -> None:
    client, lane = Told(), Conversation()

    async def run() -> None:
        async for _ in ask_lanes(client, [lane], ["slow"], "问？", [], Choices()):
            lane.stop()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert client.asked == [] and not lane.running and lane.turns[-1].state == "stopped"


def test_a_page_that_goes_away_stops_the_answers() -> None:
    client, lanes = Told(), [Conversation(), Conversation()]

    async def run() -> None:
        updates = ask_lanes(client, lanes, ["slow", "slow"], "问？", [], Choices())
        async for _ in updates:
            if all(lane.turns[-1].answer == "结节。" for lane in lanes):
                break
        await updates.aclose()
        assert client.closed == ["slow", "slow"]

    asyncio.run(asyncio.wait_for(run(), 20))


def test_dropping_an_exam_stops_its_answers() -> None:
    client, store = Told(), ExamStore()
    exam = store.add([b"1"], [(4, 3)], ["1"])

    async def run() -> None:
        async for _ in ask_lanes(client, exam.lanes[:1], ["slow"], "问？", exam.frames, Choices()):
            if exam.lanes[0].turns[-1].answer:
                store.drop(exam.key)

    asyncio.run(asyncio.wait_for(run(), 20))
    assert client.closed == ["slow"]


def test_an_unforeseen_error_tells_nothing_of_its_text() -> None:
    lane = Conversation()
    assert ask(Told(), [lane], ["bug"])[-1] == "f"
    assert "WANG" not in str(lane.turns[-1].error) and "RuntimeError" in str(lane.turns[-1].error)
