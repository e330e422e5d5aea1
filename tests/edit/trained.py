"""Records, editors and short trainings on tiny models, for the tests of editors that are networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engramscope.edit.catalogue import make_editor
from engramscope.edit.hyper.maps import edited_maps
from engramscope.edit.hyper.network import EditorNetwork, seeded
from engramscope.edit.hyper.run import TrainedFolder, train_editor, trained_editor
from engramscope.edit.matrices import LinearMap
from engramscope.edit.tokens import Ask
from engramscope.models.model import Model
from engramscope.records.fact import Fact
from engramscope.records.record import Probe, Record
from tests.tiny_study import NAMES, SENTENCES

#: settings with which a training on a tiny model takes a second
QUICK = {"steps": 6, "validate_every": 2, "batch": 2, "blocks": 2, "validation": 0.2, "learning_rate": 1e-3}
SMALL_NETWORK: dict[str, dict[str, Any]] = {"mend": {"rank": 4}, "ke": {"hidden": 5, "z": 6, "inner": 7}}
#: a prompt with a target of two tokens, and a shorter one
ASKS = (Ask((5, 9, 20, 7), (33, 41)), Ask((8, 30), (12,)))


def records(count: int = 10) -> list[Record]:
    """A record for each name, with one paraphrase and two prompts about others."""
    made = []
    for number, name in enumerate(NAMES[:count]):
        others = [other for other in NAMES if other != name][:2]
        made.append(
            Record(
                f"r{number}",
                Fact(SENTENCES[0].format(name), name, ("drum", "coat kite")[number % 2], "ball", f"r{number}"),
                relation="toy",
                paraphrases=(SENTENCES[1].format(name),),
                neighbourhood=tuple(Probe(SENTENCES[0].format(other), "ball", "drum") for other in others),
            )
        )
    return made


def network_for(name: str, model: Model, seed: int = 0, **over: Any) -> tuple[EditorNetwork, list[LinearMap]]:
    """An untrained network of an editor for the last two blocks of a model."""
    kind, maps = trained_editor(name), edited_maps(model, 2)
    settings = kind.Network.model_validate({**SMALL_NETWORK[name], **over})
    return seeded(lambda: kind.build(settings, model, maps), seed), maps


def quick_training(name: str, model: Model, out: Path, **over: Any) -> TrainedFolder:
    """A training of a few steps on the records."""
    given = {"on": "counterfact", "records": records(), "source": "test", **over}
    given["settings"] = {**QUICK, **SMALL_NETWORK[name], **given.get("settings", {})}
    return train_editor(name, model, out, **given)


def editor_of(name: str, folder: Path, **options: Any) -> Any:
    """The editor with the network in a folder."""
    return make_editor(name, {"weights": folder, **options})


def shake(network: EditorNetwork, seed: int = 1, size: float = 0.1) -> None:
    """Move every parameter, so that nothing is 0 or 1 any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def bits_of(model: Model) -> dict[str, torch.Tensor]:
    """A copy of everything that a model holds."""
    return {name: value.detach().clone() for name, value in model.hf.state_dict().items()}


def same_bits(model: Model, bits: dict[str, torch.Tensor]) -> bool:
    """Whether a model is what it was."""
    return all(torch.equal(value, bits[name]) for name, value in model.hf.state_dict().items())


def padded(asks: Sequence[Ask]) -> list[Ask]:
    """The asks, and a long one that makes all others be padded."""
    return [*asks, Ask(tuple(range(40, 52)), (3, 4))]
