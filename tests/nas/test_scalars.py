import errno
from pathlib import Path

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from detector.errors import UserError
from nas.scalars import Scalars
from nas.store import Episode, State


def episode(number: int, reward: float | None, state: State = State.DONE) -> Episode:
    return Episode(number, "", number, (), None, 0, state, None, reward)


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Tags, steps and values of all files, read as the format says: length, its checksum, an event, its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            record, content = content[12 : 12 + length], content[16 + length :]
            event = Event.FromString(record)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_every_episode_is_in_the_file_once_whatever_its_order_and_however_often_it_is_shown(tmp_path: Path) -> None:
    """It is whole before it is closed: a killed search leaves it so."""
    folder = tmp_path / "study"
    first = [episode(0, 0.25), episode(1, None, State.RUNNING), episode(2, 0.5)]
    scalars = Scalars(folder)
    scalars.show(first, 0, None)
    scalars.show(first, 1, 0.75)
    assert {(tag, step) for tag, step, _ in events(folder)} == {
        *((f"reward/{what}", step) for what in ("episode", "best") for step in (0, 2)),
        ("policy/entropy", 1),
    }
    scalars.close()
    later = Scalars(folder)
    later.show([first[0], episode(1, 0.125), first[2], episode(3, None, State.FAILED)], 2, 0.5)
    found = events(folder)
    assert [(step, value) for tag, step, value in found if tag == "reward/episode"] == [(0, 0.25), (1, 0.125), (2, 0.5)]
    assert [(step, value) for tag, step, value in found if tag == "reward/best"] == [(0, 0.25), (1, 0.25), (2, 0.5)]
    assert [(step, value) for tag, step, value in found if tag == "policy/entropy"] == [(2, 0.5)]
    later.close()


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_text("theirs")
    Scalars(tmp_path).close()
    Scalars(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UserError, match="--tensorboard: /proc/events cannot be written"):
        Scalars(Path("/proc/events"))


def test_a_disk_that_fills_up_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    scalars = Scalars(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", full)
    for _ in range(2):
        scalars.show([episode(0, 0.25)], 0, None)
    assert caplog.messages == ["--tensorboard: no more events are written (No space left on device)"]
