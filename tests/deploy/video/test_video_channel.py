from __future__ import annotations

from threading import Thread

import pytest

from fcn_deploy.video.channel import Channel, ChannelClosedError, Producing


def test_a_consumer_gets_every_item_then_the_error_once_then_nothing() -> None:
    channel: Channel[int] = Channel(4)
    channel.put(1)
    channel.put(2)
    channel.finish(RuntimeError("broken"))

    assert [channel.get(), channel.get()] == [1, 2]
    with pytest.raises(RuntimeError, match="broken"):
        channel.get()
    assert channel.get() is None


def test_a_full_channel_makes_the_producer_wait() -> None:
    channel: Channel[int] = Channel(2)
    producer = Thread(target=lambda: [channel.put(number) for number in range(500)])
    producer.start()

    taken = [channel.get(timeout_s=10) for _ in range(500)]

    producer.join()
    assert taken == list(range(500))


def test_a_channel_that_loses_the_oldest_says_how_many() -> None:
    channel: Channel[int] = Channel(3)
    channel.lose_oldest(1)

    dropped = [channel.put(number) for number in range(4)]

    assert dropped == [0, 1, 1, 1]
    assert channel.get() == 3


def test_closing_wakes_a_waiting_producer_and_counts_what_is_lost() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(1)
    outcome: list[str] = []

    def produce() -> None:
        try:
            channel.put(2)
        except ChannelClosedError:
            outcome.append("closed")

    producer = Thread(target=produce)
    producer.start()

    discarded = channel.close()

    producer.join(10)
    assert (discarded, outcome, channel.get()) == (1, ["closed"], None)


def test_waiting_for_an_item_is_bounded() -> None:
    channel: Channel[int] = Channel(1)

    with pytest.raises(TimeoutError, match=r"^$"):
        channel.get(timeout_s=0.01)


def test_a_producer_that_fails_hands_its_error_over() -> None:
    channel: Channel[int] = Channel(1)

    with Producing(channel):
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        channel.get()


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0; it must be 1 or more"):
        Channel(0)


def test_what_was_taken_is_known_whatever_became_of_the_rest() -> None:
    channel: Channel[int] = Channel(3)
    for item in range(3):
        channel.put(item)
    channel.lose_oldest(2)
    channel.put(3)

    channel.get()
    taken = channel.taken
    channel.close()

    assert (taken, channel.taken) == (1, 1)
