from pathlib import Path

import pytest
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


def test_every_episode_is_written_once_whatever_its_order_and_however_often_it_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    first = [episode(0, 0.25), episode(1, None, State.RUNNING), episode(2, 0.5)]
    scalars = Scalars(folder, [])
    scalars.show(first, 0, None)
    scalars.show(first, 1, 0.75)
    scalars.close()
    later = [*first[:1], episode(1, 0.125), first[2], episode(3, None, State.FAILED)]
    scalars = Scalars(folder, first)
    scalars.show(later, 2, 0.5)
    scalars.close()
    found = events(folder)
    assert sorted(step for tag, step, _ in found if tag == "reward/episode") == [0, 1, 2]
    assert {(step, value) for tag, step, value in found if tag == "reward/best"} == {(0, 0.25), (2, 0.5), (1, 0.5)}
    assert {(step, value) for tag, step, value in found if tag == "policy/entropy"} == {(1, 0.75), (2, 0.5)}


def test_a_study_from_before_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    before = [episode(0, 0.25), episode(1, 0.5)]
    scalars = Scalars(tmp_path / "study", before)
    scalars.show(before, 0, None)
    scalars.close()
    assert [step for tag, step, _ in events(tmp_path / "study") if tag == "reward/episode"] == [0, 1]


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UserError, match="--tensorboard: /proc/events cannot be written"):
        Scalars(Path("/proc/events"), [])
