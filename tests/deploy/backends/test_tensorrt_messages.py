"""TensorRT's messages reach the thread that caused them."""

from __future__ import annotations

import logging
import threading

import pytest

from fcn_deploy.backends.tensorrt.messages import Message, MessageHub, Severity


def test_capture_takes_what_is_grave_enough() -> None:
    hub = MessageHub()

    with hub.capture(Severity.WARNING) as messages:
        hub.publish(Severity.ERROR, "bad")
        hub.publish(Severity.WARNING, "odd")
        hub.publish(Severity.INFO, "fine")

    assert messages == [Message(Severity.ERROR, "bad"), Message(Severity.WARNING, "odd")]
    assert str(messages[0]) == "[ERROR] bad"


def test_nothing_is_captured_after_the_end() -> None:
    hub = MessageHub()
    with hub.capture() as messages:
        pass

    hub.publish(Severity.ERROR, "late")

    assert messages == []


def test_inner_and_outer_capture_both_listen() -> None:
    hub = MessageHub()

    with hub.capture() as outer, hub.capture(Severity.ERROR) as inner:
        hub.publish(Severity.WARNING, "odd")

    assert (len(outer), len(inner)) == (1, 0)


def test_threads_hear_their_own_messages_only() -> None:
    hub = MessageHub()
    both = threading.Barrier(2)
    heard: dict[str, list[Message]] = {}

    def work(name: str) -> None:
        with hub.capture() as messages:
            both.wait(timeout=10)
            hub.publish(Severity.ERROR, name)
            both.wait(timeout=10)
        heard[name] = list(messages)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert {name: [m.text for m in messages] for name, messages in heard.items()} == {
        "a": ["a"],
        "b": ["b"],
    }


def test_library_threads_are_heard_by_every_capture() -> None:
    hub = MessageHub()

    with hub.capture() as messages:
        thread = threading.Thread(target=hub.publish, args=(Severity.ERROR, "from a worker"))
        thread.start()
        thread.join(timeout=10)

    assert [message.text for message in messages] == ["from a worker"]


def test_what_nobody_captures_is_logged_at_its_own_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = MessageHub()

    with caplog.at_level(logging.DEBUG, logger="fcn_deploy"):
        hub.publish(Severity.INTERNAL_ERROR, "internal")
        hub.publish(Severity.WARNING, "100 % odd")
        with hub.capture():
            hub.publish(Severity.WARNING, "captured")

    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert levels == [("ERROR", "internal"), ("WARNING", "100 % odd"), ("DEBUG", "captured")]
