"""PAL's heads against the published code, people as mixtures, new people, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scorers
from scorers.pal import Pal
from scorers.pal_heads import PalHead, PalOptions, parse_mlp, published_state
from scorers.pickscore import PickScore
from tests.scorers.conftest import GOLDEN
from tests.scorers.contract import PROMPTS, check_contract

CASES = {
    "A_dist_f_Pw_": {"nearness": "dist", "point": "f(Pw)"},
    "A_dist_f_P_w": {"nearness": "dist", "point": "f(P)w"},
    "A_dist_Pw": {"nearness": "dist", "point": "Pw"},
    "A_angle_f_Pw_": {"point": "f(Pw)"},
    "A_angle_f_P_w": {"point": "f(P)w"},
    "A_angle_Pw": {"point": "Pw"},
    "A_dist_logistic_f_P_w": {"nearness": "dist"},
    "A_angle_hinge_f_P_w": {},
    "B_dist": {"kind": "B", "nearness": "dist"},
    "B_angle": {"kind": "B"},
    "B_dist_logistic": {"kind": "B", "nearness": "dist"},
    "B_partition": {"kind": "B", "hard": True},
}


def numbers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pal_tiny.npz", allow_pickle=False) as found:
        return dict(found)


def close(found: Tensor, expected: np.ndarray, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-5 * scale)


class Published:
    """One published learner, its items, and the points of the people who are asked."""

    def __init__(self, case: str) -> None:
        data = numbers()
        whole = load_file(GOLDEN / "pal_tiny_state_dict.safetensors")
        prefix = f"{case}|"
        state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
        ours, people = published_state(state)
        self.head = PalHead(PalOptions(feature=12, width=8, users=people, **CASES[case])).eval()
        self.head.load_state_dict(ours, strict=True)
        embed = state["llm.emb.weight"]
        prompts = embed[data["prompt"]] if case[0] == "B" else None
        self.groups = self.head.prototypes(prompts).detach()
        weights = self.head.mixture([str(u) for u in data["uids"]])
        self.points = self.head.points(weights[:, None], self.groups).detach()
        self.left, self.right = (self.head.items(embed[data[s]]).detach() for s in ("left", "right"))

    def rewards(self) -> tuple[Tensor, Tensor]:
        left, right = (self.head.rewards(x, self.points).detach() for x in (self.left, self.right))
        return left, right


@pytest.mark.parametrize("case", [c for c in CASES if c != "B_partition"])
def test_points_and_items_of_the_published_code(case: str) -> None:
    data, found = numbers(), Published(case)
    close(found.left, data[f"{case}_xl"])
    close(found.points if case[0] == "B" else found.points[:, 0], data[f"{case}_u"])
    if case[0] == "B":
        close(found.right, data[f"{case}_xr"])
        close(found.groups.transpose(1, 2), data[f"{case}_gk"])  # (4, groups, tokens, width)


@pytest.mark.parametrize("case", list(CASES))
def test_rewards_of_the_published_code(case: str) -> None:
    data, found = numbers(), Published(case)
    left, right = found.rewards()
    scale = float(found.head.logit_scale.detach().exp())
    if case == "B_partition":
        close(torch.stack([left, right], -1), data["B_angle_partition_eval"], scale)
    elif case in ("A_dist_f_Pw_", "A_dist_f_P_w", "A_dist_Pw"):
        close(right - left, data[case])  # |left - u| - |right - u|: negative where the left one is preferred
    elif case == "A_angle_hinge_f_P_w":
        close(right - left, data[case], scale)
    elif case == "A_dist_logistic_f_P_w":
        close(-scale * torch.stack([left, right], -1), data[case], scale)  # their sign is a fault
    elif "angle" in case:
        close(torch.stack([left, right], -1), data[case], scale)


def test_maps() -> None:
    assert parse_mlp("mlp2-gelu-dropout5") == (2, "gelu", 0.5, True)
    assert parse_mlp("mlp0-linear-dropout0-nobias") == (0, "linear", 0.0, False)
    assert parse_mlp("mlp1-relu-dropout25")[2] == 0.25
    with pytest.raises(ValueError, match="no map of PAL; write mlp2-gelu-dropout0"):
        parse_mlp("mlp2-gelu-dropout0-batchnorm")
    head = PalHead(PalOptions(feature=3, width=2, mlp="mlp0-linear-dropout0-nobias"))
    assert [k for k in head.state_dict() if "projector" in k] == ["projector.mlp.layers.0.weight"]


def test_options_are_checked() -> None:
    for wrong, message in (
        ({"kind": "C"}, "kind must be one of A, B"),
        ({"groups": 0}, "at least 1"),
        ({"users": ("a", "a")}, "named twice"),
    ):
        with pytest.raises(ValueError, match=message):
            PalOptions(**wrong)


def planted_head(kind: str = "A") -> PalHead:
    """Two groups that like opposite things."""
    head = PalHead(
        PalOptions(
            kind=kind, nearness="dist", point="Pw", feature=4, width=4, mlp="mlp0-linear-dropout0-nobias"
        )
    )  # type: ignore[arg-type]
    with torch.no_grad():
        eye = torch.eye(4)
        head.logit_scale.fill_(1.0)
        if kind == "A":
            head.projector.mlp.layers[0].weight.copy_(eye)
            head.user_learner.P.copy_(torch.stack([eye[0], -eye[0]]))
        else:
            head.projector_f.mlp.layers[0].weight.copy_(eye)
            for g, sign in zip(head.user_learner.projectors, (1, -1), strict=True):
                g.mlp.layers[0].weight.copy_(sign * eye)
    return head.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("group", [0, 1])
def test_eight_votes_tell_the_group_of_a_new_person(kind: str, group: int) -> None:
    head = planted_head(kind)
    generator = torch.Generator().manual_seed(group)
    first, second = torch.randn(2, 8, 4, generator=generator)
    prompts = torch.eye(4)[:1].expand(8, -1)
    liked = (first[:, 0] > second[:, 0]).float()
    row = head.fit_row(first, second, liked if group == 0 else 1 - liked, prompts)
    assert float(head.mix(row)[group]) > 0.7
    weak = head.fit_row(first, second, liked if group == 0 else 1 - liked, prompts, prior=100.0)
    assert float((head.mix(weak) - 0.5).abs().max()) < 0.1
    with pytest.raises(ValueError, match="needs votes"):
        head.fit_row(first[:0], second[:0], liked[:0])


def test_mean_vote_leaves_a_new_person_undecided() -> None:
    head = planted_head()
    first = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    second = first * torch.tensor([-1.0, 1, 1, 1])  # as far from the one group as the first from the other
    torch.testing.assert_close(
        head.mix(head.fit_row(first, second, torch.full((8,), 0.5)))[0], torch.tensor(0.5)
    )


def tiny_pal(backbone: PickScore, **options: object) -> Pal:
    torch.manual_seed(1)
    head = PalHead(PalOptions(feature=16, width=8, users=("ann", "b.c"), **options))  # type: ignore[arg-type]
    with torch.no_grad():
        head.user_learner.W.copy_(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]))
    return Pal(backbone, head)


@pytest.mark.parametrize("options", [{}, {"kind": "B"}, {"nearness": "dist", "point": "Pw"}])
def test_contract(scorer: PickScore, options: dict[str, object]) -> None:
    pal = tiny_pal(scorer, **options)
    check_contract(pal)
    check_contract(pal.for_user("b.c"))


def test_people_differ_and_everybody_is_between_them(scorer: PickScore) -> None:
    pal, x = tiny_pal(scorer, nearness="angle", point="Pw"), torch.rand(3, 3, 32, 32)
    ann, bc = (pal.for_user(u).score_tensor(x, PROMPTS) for u in ("ann", "b.c"))
    assert float((ann - bc).abs().max()) > 0.1
    torch.testing.assert_close(pal.score_users(x, PROMPTS, ["ann", "b.c", "ann"])[1], bc[1])
    torch.testing.assert_close(
        pal.for_mixture([0.5, 0.5]).score_tensor(x, PROMPTS), pal.score_tensor(x, PROMPTS)
    )
    assert pal.for_user("ann")(x, PROMPTS).meta["user"] == "ann"
    assert pal.person == ""
    with pytest.raises(ValueError, match="does not know 'zoe'; it knows 2 people"):
        pal.for_user("zoe")
    with pytest.raises(ValueError, match="2 weights that are not negative and sum to 1"):
        pal.for_mixture([0.5, 0.6])
    with pytest.raises(ValueError, match="3 pictures but 1 people"):
        pal.score_users(x, PROMPTS, ["ann"])


def test_a_new_person_is_added_and_saved(scorer: PickScore, tmp_path: Path) -> None:
    pal = tiny_pal(scorer, point="Pw")
    rng = np.random.default_rng(0)
    first, second = (list(rng.integers(0, 256, (8, 40, 32, 3), dtype=np.uint8)) for _ in range(2))
    prompts = ["a cat"] * 8
    bc = pal.for_user("b.c")
    labels = (bc(first, prompts).score > bc(second, prompts).score).float().tolist()
    zoe = pal.fit_user("zoe", first, second, prompts, labels)
    assert float(zoe.mixture()[1]) > 0.5
    assert pal.head.options.users == ("ann", "b.c", "zoe")
    assert not pal.head.user_learner.W.requires_grad
    for votes, message in (
        (("zoe", first, second, prompts, labels), "knows a 'zoe' already"),
        (("y", first, second, prompts, labels[:3]), "8 first and 8 second pictures, 8 prompts, 3 labels"),
        (("y", first, second, prompts, [2.0] * 8), r"labels must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pal.fit_user(*votes)
    pal.save(tmp_path)
    again = scorers.load("pal", tmp_path)
    assert isinstance(again, Pal)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(again.for_user("zoe").score_tensor(x, PROMPTS), zoe.score_tensor(x, PROMPTS))


def test_published_layout_and_bad_files(scorer: PickScore, tmp_path: Path) -> None:
    tiny_pal(scorer).save(tmp_path)
    state = load_file(tmp_path / "pal.safetensors")
    rows = state.pop("user_learner.W")
    published = {**state, "user_learner.W.x": rows[0].clone(), "user_learner.W.y": rows[1].clone()}
    doubles = {f"item_learner.{k}": v.clone() for k, v in state.items() if k.startswith("projector")}
    save_file(published | doubles, tmp_path / "pal.safetensors")
    found = scorers.load("pal", tmp_path)
    assert isinstance(found, Pal)
    assert found.head.options.users == ("x", "y")
    save_file({"mu": torch.ones(1)}, tmp_path / "pal.safetensors")
    with pytest.raises(ValueError, match="checkpoint of another model"):
        scorers.load("pal", tmp_path)
    (tmp_path / "pal.json").write_text('{"kind": "C"}')
    with pytest.raises(ValueError, match=r"pal\.json holds no options of PAL: kind must be"):
        scorers.load("pal", tmp_path)
    (tmp_path / "pal.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no pal\.json"):
        scorers.load("pal", tmp_path)


def test_training_reaches_everything(scorer: PickScore) -> None:
    pal = tiny_pal(scorer, kind="B")
    pal.head.requires_grad_(True)
    pal.score_users(torch.rand(2, 3, 32, 32), ["a", "b"], ["ann", "b.c"]).sum().backward()
    assert [k for k, p in pal.head.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in pal.backbone.parameters())
