from pathlib import Path

from experiments.store_load import measure


def test_a_reader_at_full_speed_and_a_writer_do_not_get_into_each_other_s_way(tmp_path: Path) -> None:
    written, read, _ = measure(str(tmp_path / "nas.db"), readers=1, rate=200.0, seconds=1.0)
    assert not written.errors + read.errors
    assert written.seconds
    assert read.seconds
