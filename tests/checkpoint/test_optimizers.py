"""The state of optimizers goes with the names of parameters: what has moved is found, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import shardstream as ss
from shardstream.errors import StateError
from tests.checkpoint.models import equal

SIZES = {"a": (3, 3), "b": (3, 3), "c": (3, 3)}  # as large as each other: no shape tells them apart


class Net(nn.Module):
    """Parameters of one shape, registered in the order that is asked for."""

    def __init__(self, order: str = "abc") -> None:
        super().__init__()
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.zeros(SIZES[name])))


def stepped(optim: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: int = 2) -> None:
    """Steps whose gradients are others for each name."""
    for step in range(steps):
        for name, value in named.items():
            value.grad = torch.full_like(value, sum(name.encode()) + step) if value.requires_grad else None
        optim.step(lambda: torch.zeros(())) if isinstance(optim, torch.optim.LBFGS) else optim.step()


def by_name(optim: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> dict[str, Any]:
    return {name: dict(optim.state[value]) for name, value in named.items() if value in optim.state}


def two(order: str, other: str) -> tuple[Net, Net, dict[str, nn.Parameter]]:
    """Two modules, and their parameters by name."""
    one, two = Net(order), Net(other)
    return one, two, {f"{n}.{k}": v for n, m in (("x", one), ("y", two)) for k, v in m.named_parameters()}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda given: torch.optim.AdamW(given, lr=0.1, amsgrad=True),
    "fused": lambda given: torch.optim.AdamW(given, lr=0.1, fused=True),
    "foreach": lambda given: torch.optim.Adam(given, lr=0.1, foreach=True),
    "tensor lr": lambda given: torch.optim.Adam(given, lr=torch.tensor(0.1), foreach=False),
    "sgd": lambda given: torch.optim.SGD(given, lr=0.1),
    "momentum": lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9),
    "adafactor": lambda given: torch.optim.Adafactor(given, lr=0.1),
    "rmsprop": lambda given: torch.optim.RMSprop(given, lr=0.1, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("taken", [0, 2])
def test_an_optimizer_of_two_modules_finds_its_state_in_another_order(
    tmp_path: Path, kind: str, taken: int
) -> None:
    x, y, named = two("abc", "ab")
    y.b.requires_grad_(False)  # frozen: it never has a state
    optim = OPTIMIZERS[kind](named.values())
    stepped(optim, named)
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"nets": [x, {"y": y}], "optim": optim})
    saves.wait()
    new_x, new_y, fresh = two("cba", "ba")
    new_y.b.requires_grad_(False)
    other = OPTIMIZERS[kind](list(reversed(fresh.values())))
    stepped(other, fresh, taken)
    assert saves.load({"nets": [new_x, {"y": new_y}], "optim": other}) == 1
    assert equal(by_name(optim, named), by_name(other, dict(sorted(fresh.items()))))
    for net, again in ((x, new_x), (y, new_y)):
        assert equal(
            dict(net.named_parameters()), {name: getattr(again, name) for name, _ in net.named_parameters()}
        )
    stepped(optim, named, 1)
    stepped(other, fresh, 1)
    assert all(torch.equal(named[name], fresh[name]) for name in named)


def test_names_come_from_modules_tensors_and_the_optimizer(tmp_path: Path) -> None:
    net, extra, own = Net("ab"), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 3))
    optim = torch.optim.Adam([("a", net.a), ("b", net.b), ("extra", extra), ("own", own)])
    named = {"a": net.a, "b": net.b, "extra": extra, "own": own}
    stepped(optim, named)
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"net": net, "more": {"extra": extra}, "optim": optim})
    saves.wait()
    assert list(saves.manifest(1).values["optim"]["state"]) == ["net/a", "net/b", "more/extra", "own"]
    fresh = {"a": Net("ba"), "extra": nn.Parameter(torch.ones(2)), "own": nn.Parameter(torch.ones(3, 3))}
    values = {"a": fresh["a"].a, "b": fresh["a"].b, "extra": fresh["extra"], "own": fresh["own"]}
    other = torch.optim.Adam([("own", values["own"]), *reversed(list(values.items())[:3])])
    assert saves.load({"net": fresh["a"], "more": {"extra": fresh["extra"]}, "optim": other}) == 1
    assert equal(by_name(optim, named), by_name(other, values))
    assert other.param_groups[0]["param_names"][0] == "own"


def test_a_parameter_without_a_name_is_refused(tmp_path: Path) -> None:
    net = Net()
    saves = ss.Checkpoints(str(tmp_path))
    optim = torch.optim.Adam([*net.parameters(), nn.Parameter(torch.zeros(7))])
    with pytest.raises(StateError, match=r"optim: parameter 3, of shape \[7\], has no name"):
        saves.save(1, {"net": net, "optim": optim})
    with pytest.raises(StateError, match=r"parts/0: parameter 0, of shape \[3, 3\], has no name"):
        saves.save(1, {"parts": [torch.optim.Adam(net.parameters())]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["ab", "c"], "parameter 'b' is in group 1 of the checkpoint, not here"),
        (["abc"], "optim has 1 group of parameters, in the checkpoint 2"),
        (["a", "b"], "optim has other parameters than the checkpoint; only in the checkpoint: c"),
        (["a", "bcd"], "optim has other parameters than the checkpoint; not in the checkpoint: d"),
    ],
)
def test_other_groups_are_refused_before_anything_changes(
    tmp_path: Path, groups: list[str], message: str
) -> None:
    net = Net()
    optim = torch.optim.Adam([{"params": [net.a], "lr": 0.5}, {"params": [net.b, net.c], "name": "rest"}])
    stepped(optim, dict(net.named_parameters()))
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"net": net, "optim": optim})
    saves.wait()
    other = Net()
    values = {**dict(other.named_parameters()), "d": nn.Parameter(torch.zeros(1))}
    new = torch.optim.Adam([{"params": [(name, values[name]) for name in group]} for group in groups])
    with pytest.raises(StateError, match=message):
        saves.load({"net": other, "optim": new})
    assert other.a.eq(0).all()


def test_other_shapes_and_other_orders_of_lbfgs_are_refused(tmp_path: Path) -> None:
    net = Net()
    saves = ss.Checkpoints(str(tmp_path))
    adam, lbfgs = torch.optim.Adam(net.named_parameters()), torch.optim.LBFGS(net.named_parameters())
    for optim in (adam, lbfgs):
        stepped(optim, dict(net.named_parameters()))
    saves.save(1, {"adam": adam, "lbfgs": lbfgs})
    saves.wait()
    wide = torch.optim.Adam([("a", net.a), ("b", nn.Parameter(torch.zeros(9))), ("c", net.c)])
    with pytest.raises(StateError, match=r"adam: parameter 'b' is \[9\], in the checkpoint \[3, 3\]"):
        saves.load({"adam": wide})
    with pytest.raises(StateError, match="lbfgs: its parameters are in another order"):
        saves.load({"lbfgs": torch.optim.LBFGS(Net("cab").named_parameters())})
    again = torch.optim.LBFGS(Net().named_parameters())
    assert saves.load({"lbfgs": again}) == 1
    assert equal(list(lbfgs.state.values()), list(again.state.values()))


def test_tied_parameters_are_found_by_either_name(tmp_path: Path) -> None:
    def tied(order: str) -> tuple[nn.Module, nn.Parameter]:
        net, shared = nn.Module(), nn.Parameter(torch.zeros(2))
        for name in order:
            net.register_parameter(name, shared)
        return net, shared

    (net, shared), (turned, again) = tied("ab"), tied("ba")
    optim, other = torch.optim.Adam(net.parameters()), torch.optim.Adam(turned.parameters())
    stepped(optim, {"a": shared})
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"net": net, "optim": optim})
    saves.wait()
    assert saves.load({"net": turned, "optim": other}) == 1
    assert equal(by_name(optim, {"a": shared}), by_name(other, {"a": again}))


def schedules(optim: torch.optim.Optimizer) -> dict[str, Any]:
    """Every kind of scheduler, on one optimizer."""
    of = torch.optim.lr_scheduler
    return {
        "step": of.StepLR(optim, 2), "lambda": of.LambdaLR(optim, lambda step: 0.5**step),
        "cosine": of.CosineAnnealingWarmRestarts(optim, 3), "once": of.OneCycleLR(optim, 1.0, 20),
        "cyclic": of.CyclicLR(optim, 0.1, 1.0, cycle_momentum=False), "linear": of.LinearLR(optim),
        "plateau": of.ReduceLROnPlateau(optim, patience=0),
        "in turn": of.SequentialLR(optim, [of.ConstantLR(optim), of.ExponentialLR(optim, 0.9)], [2]),
        "chained": of.ChainedScheduler([of.LinearLR(optim), of.PolynomialLR(optim)], optim),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.parametrize("kind", schedules(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)))
def test_every_scheduler_goes_on(tmp_path: Path, kind: str) -> None:
    def made(groups: int = 2) -> tuple[torch.optim.Optimizer, Any]:
        values = [(str(n), nn.Parameter(torch.zeros(2))) for n in range(groups)]
        optim = torch.optim.SGD([{"params": [each], "lr": 0.1 + n} for n, each in enumerate(values)])
        return optim, schedules(optim)[kind]

    def rates(optim: torch.optim.Optimizer, schedule: Any, steps: int) -> list[list[float]]:
        found = []
        for _ in range(steps):
            schedule.step(1.0) if kind == "plateau" else schedule.step()
            found.append([group["lr"] for group in optim.param_groups])
        return found

    optim, schedule = made()
    rates(optim, schedule, 3)
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"optim": optim, "schedule": schedule})
    saves.wait()
    again, later = made()
    assert saves.load({"optim": again, "schedule": later}) == 1
    assert rates(optim, schedule, 4) == rates(again, later, 4)
    if kind != "chained" and kind != "in turn":
        with pytest.raises(StateError, match="schedule: the optimizer has 1 group of parameters, in the ch"):
            saves.load({"schedule": made(1)[1]})


def test_objects_of_a_class_of_its_own_and_scalers_come_back(tmp_path: Path) -> None:
    class Average:
        def __init__(self) -> None:
            self.values, self.count = {"w": torch.zeros(3)}, 0

        def state_dict(self) -> dict[str, Any]:
            return {"values": self.values, "count": self.count, 7: (1, None)}

        def load_state_dict(self, state: dict[Any, Any]) -> None:
            self.values, self.count = state["values"], state["count"]
            assert state[7] == (1, None)

    average, scaler = Average(), torch.amp.GradScaler("cpu", init_scale=64.0)
    average.values["w"] += 2
    average.count = 5
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"ema": {"of": [average]}, "scaler": scaler})
    saves.wait()
    again, fresh = Average(), torch.amp.GradScaler("cpu")
    assert saves.load({"ema": {"of": [again]}, "scaler": fresh}) == 1
    assert again.values["w"].eq(2).all()
    assert again.count == 5
    assert fresh.state_dict() == scaler.state_dict()
    with pytest.raises(StateError, match="ema/of/1 is a Average, for which the checkpoint has nothing"):
        saves.load({"ema": {"of": [again, Average()]}})
    with pytest.raises(StateError, match="ema/0 is a Average, for which the checkpoint has nothing"):
        saves.load({"ema": [again]})


def test_names_without_shapes_are_not_taken_for_positions(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net, again = Net("abc"), Net("abc")
    optim = torch.optim.Adam(net.parameters())
    stepped(optim, dict(net.named_parameters()))
    saves = ss.Checkpoints(str(tmp_path))
    saves.save(1, {"net": net, "optim": get_optimizer_state_dict(net, optim)})
    saves.wait()
    other = torch.optim.Adam(list(again.parameters())[::-1])
    assert saves.load({"net": again, "optim": other}) == 1
    assert equal(by_name(optim, dict(net.named_parameters())), by_name(other, dict(again.named_parameters())))
