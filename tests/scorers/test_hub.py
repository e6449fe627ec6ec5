"""Weights from the hub: only when allowed, whole or not at all, and once."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest

import scorers
from scorers.hub import HubFiles, fetch, sources


class Hub:
    """Stands for the hub: repositories with files, and who asked for what."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories, self.asked = repositories, list[str]()

    def __call__(self, repo: str, *, allow_patterns: list[str], local_dir: Path) -> str:
        self.asked.append(repo)
        if repo not in self.repositories:
            raise OSError("no route to host")
        local_dir.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in self.repositories[repo].glob(pattern):
                shutil.copy(file, local_dir)
        return str(local_dir)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """PickScore's two repositories, of the tiny scorer; the tokenizer in the second."""
    both = {source.repo: tmp_path / str(i) for i, source in enumerate(sources("pickscore"))}
    for source in sources("pickscore"):
        both[source.repo].mkdir()
        for name in source.files:
            if (folder / name).is_file():
                shutil.copy(folder / name, both[source.repo])
            else:
                (both[source.repo] / name).write_text("{}")
    found = Hub(both)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    monkeypatch.setenv("SCORERS_WEIGHTS", str(tmp_path / "home"))
    return found


def test_nothing_is_downloaded_unless_allowed(hub: Hub, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unless you allow it: yuvalkirstain/PickScore_v1 \(config"):
        scorers.load("pickscore")
    scorers.load("pickscore", folder, allow_hub=True)  # given weights go before the hub
    assert hub.asked == []


def test_what_is_allowed_comes_once_and_stays(hub: Hub, tmp_path: Path) -> None:
    assert scorers.find_weights("pickscore", allow_hub=True) == tmp_path / "home" / "pickscore"
    assert hub.asked == [source.repo for source in sources("pickscore")]
    assert scorers.load("pickscore", allow_hub=True).name == "pickscore"
    assert scorers.load("pickscore").name == "pickscore"
    assert len(hub.asked) == 2


def test_without_a_folder_of_weights_the_hubs_own_is_used(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCORERS_WEIGHTS")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    found = scorers.find_weights("pickscore", allow_hub=True)
    assert found == tmp_path / "cache" / "scorers" / "pickscore"
    assert scorers.find_weights("pickscore") is None


def test_half_a_download_is_no_weights(hub: Hub, tmp_path: Path) -> None:
    laion = sources("pickscore")[1].repo
    files = hub.repositories.pop(laion)
    with pytest.raises(ConnectionError, match=rf"{laion} .*no route to host.*home/pickscore"):
        scorers.load("pickscore", allow_hub=True)
    assert not (tmp_path / "home" / "pickscore").exists()
    hub.repositories[laion] = files
    assert scorers.load("pickscore", allow_hub=True).name == "pickscore"


def test_a_repository_without_the_file_is_said(hub: Hub, tmp_path: Path) -> None:
    (repo, *_) = hub.repositories
    with pytest.raises(FileNotFoundError, match=rf"the hub's {repo} has no other.bin"):
        fetch("pickscore", [HubFiles(repo, ("config.json", "other.bin"))])
    assert not (tmp_path / "home" / "pickscore").exists()


def test_scorers_that_the_hub_has_not(hub: Hub) -> None:
    assert sources("mps") == sources("vp-score") == sources("mask2former") == ()
    assert [s.repo for s in sources("hpsv2.1")] == ["xswu/HPSv2"]
    with pytest.raises(FileNotFoundError, match=r"nothing is downloaded$"):
        scorers.load("mps", allow_hub=True)
    assert hub.asked == []
