from pathlib import Path

import numpy as np
import pytest
import torch

from detector.coco import load_split
from experiments import chain
from experiments.runs import Run
from experiments.short_training import load_trained


@pytest.fixture
def study(tmp_path: Path) -> chain.Study:
    return chain.study_of("smoke", (), tmp_path, 8)


def test_every_chain_starts_from_one_that_was_trained_before() -> None:
    for place, names in enumerate(chain.CHAINS):
        assert len(names) == 1 or names[:-1] in chain.CHAINS[:place]
    assert len(set(chain.CHAINS)) == len(chain.CHAINS)


def test_coco_is_played_by_other_pictures_of_fewer_classes(study: chain.Study) -> None:
    (data, validation), (full, _) = (chain.splits_of(study, name) for name in (chain.COCO, chain.FULL))
    assert data.num_classes == validation.num_classes == full.num_classes // 2
    assert set(data.category_names) < set(full.category_names)
    assert data.hash != full.hash
    assert set(chain.splits_of(study, chain.TINY)[0].category_names) - set(data.category_names)  # rare ones


def test_objects_of_other_classes_are_not_labelled(study: chain.Study) -> None:
    data = load_split(study.config.data, None, "train")
    kept = np.array([1, 4, 6])
    part = chain.with_classes(data, kept)
    assert len(part) == len(data)
    for index in range(len(data)):
        boxes, labels = data.objects(index)
        chosen = np.isin(labels, kept)
        of_part, found = part.objects(index)
        assert (of_part == boxes[chosen]).all()
        assert kept[found].tolist() == labels[chosen].tolist()
    assert part.category_names == tuple(data.category_names[row] for row in kept)


def test_a_chain_starts_from_the_weights_of_the_one_before(study: chain.Study, monkeypatch) -> None:
    chain.make_run(study, Run(chain.COCO, 0))
    source = load_trained(study.runs.file(Run(chain.COCO, 0), ".pt")).model.state_dict()
    started = []
    monkeypatch.setattr(
        chain, "fit", lambda trained, _data: started.append(trained.model.state_dict()["backbone.body.conv1.0.weight"])
    )
    for name in ("full", "COCO > full", "tiny", "COCO > full > tiny"):
        chain.make_run(study, Run(name, 0))
    expected = source["backbone.body.conv1.0.weight"]
    assert [bool(torch.equal(weight, expected)) for weight in started] == [False, True, False, True]


def test_the_command_prints_gains_by_target(study: chain.Study, tmp_path: Path, monkeypatch, capsys) -> None:
    for number, names in enumerate(chain.CHAINS):
        for seed in (0, 1):
            study.runs.write(Run(chain.THEN.join(names), seed), {"ap": number / 10})
    command = ["x", "--config", "smoke", "--folder", str(tmp_path), "--steps", "8", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", command)
    chain.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| COCO > full | 0.3000 | +0.2000 | 0.0000 |" in lines
    assert "| COCO > full > tiny | 0.6000 | +0.4000 | 0.0000 |" in lines
    assert not any(line.startswith("| COCO |") for line in lines)


def test_folders_stand_for_the_three_sets(tiny_coco: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: smoke\ndata: {source: coco}\n")
    study = chain.study_of(str(path), [tmp_path, tmp_path, tiny_coco], tmp_path / "runs", 8)
    assert len(chain.splits_of(study, chain.TINY)[0]) == 3
    assert chain.steps_of(study, chain.TINY) == 2
    chain.make_run(study, Run(chain.TINY, 0))
    assert study.runs.read(Run(chain.TINY, 0))["ap"] >= 0
