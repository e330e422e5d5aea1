"""Editors as they are asked for: labels, presets, settings, and what is wrong with them."""

from __future__ import annotations

import pytest

from engramscope.edit.catalogue import editor_names
from engramscope.editing.chosen import chosen_editors, editor_settings, settings_of
from engramscope.errors import InputError, SiteError
from engramscope.models.load import load_model
from tests.edit.small import FACT, shared_model


def test_settings_are_read_as_what_they_look_like() -> None:
    texts = ["steps=30", "lr = 1e-3", "layer=null", "layers=[1, 2]", "bias=true", "objective=all_tokens"]
    assert settings_of(texts) == {
        "steps": 30, "lr": 1e-3, "layer": None, "layers": [1, 2], "bias": True, "objective": "all_tokens",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        settings_of(["steps", "a=1", "a=2", "=3"])
    assert len(caught.value.faults) == 3


def test_an_editor_with_a_preset_has_a_label_of_its_own() -> None:
    found = chosen_editors(["ft", "ft:ft-2022", "slow=ft"], ["slow.lr=1e-5", "ft.steps=3"])
    assert list(found) == ["ft", "ft-2022", "slow"]
    assert {label: editor.name for label, editor in found.items()} == dict.fromkeys(found, "ft")
    settings = {label: editor_settings(editor, shared_model("gpt2")) for label, editor in found.items()}
    assert (settings["ft"]["steps"], settings["slow"]["lr"]) == (3, 1e-5)
    assert settings["ft-2022"]["preset"] == "ft-2022"
    assert settings["ft-2022"]["objective"] == "last_prompt_token"


def test_settings_are_those_that_are_used() -> None:
    model, tiny = load_model("mini", device="cpu"), shared_model("gpt2")
    plain = [f"{label}.mom2=false" for label in ("rome", "memit", "random_site")]
    found = chosen_editors(["rome", "memit", "alphaedit", "random_site", "ft"], ["memit.steps=7", *plain])
    settings = {label: editor_settings(editor, model) for label, editor in found.items()}
    assert {label: one["token"] for label, one in settings.items() if label != "ft"} == {
        "rome": "last", "memit": "last", "alphaedit": "last", "random_site": "last",
    }  # fmt: skip
    assert [settings[label]["steps"] for label in ("rome", "memit", "alphaedit")] == [60, 7, 60]
    assert (settings["rome"]["layer"], settings["memit"]["layers"]) == (0, [0])
    for editor in (found[label] for label in found if label != "alphaedit"):  # needs texts that a tiny model has not
        edit = editor.compute(tiny, FACT)
        used = editor_settings(editor, tiny)
        assert edit.settings == used
        if editor.name == "ft":
            assert edit.diagnostics["lr"] == used["lr"] != settings["ft"]["lr"]
    with pytest.raises(SiteError, match="There is no layer 99"):
        editor_settings(chosen_editors(["rome"], ["rome.layer=99"])["rome"], tiny)


def test_all_are_all() -> None:
    found = chosen_editors(["all"])
    assert {editor.name for editor in found.values()} == set(editor_names())
    labels = list(found)
    assert labels[:2] == ["ft", "ft_l"]
    assert labels[labels.index("ke") + 1] == "ke-cf"
    controls = [editor.control for editor in found.values()]
    assert controls == sorted(controls)


def test_a_preset_that_one_editor_has_names_it() -> None:
    found = chosen_editors(["mend_cf", "kn-2022", "mine=ke-cf"])
    assert [(label, editor.name, editor.preset) for label, editor in found.items()] == [
        ("mend-cf", "mend", "mend-cf"), ("kn-2022", "kn", "kn-2022"), ("mine", "ke", "ke-cf"),
    ]  # fmt: skip
    # two editors have it
    with pytest.raises(InputError, match="Unknown editor 'ft-2022'"):
        chosen_editors(["ft-2022"])


@pytest.mark.parametrize(
    ("names", "sets", "said"),
    [
        (["ftt"], [], "did you mean 'ft'"),
        ([], [], "No editor is named"),
        (["ft", "ft"], [], "named twice"),
        (["../x=ft"], [], "cannot be a label"),
        (["ft:rome-2022"], [], "unknown preset"),
        (["ft"], ["ft.stpes=3"], "did you mean 'steps'"),
        (["ft"], ["steps=3"], "editor.key=value"),
        (["ft"], ["fl.steps=3"], "takes no part"),
        (["ft"], ["ft.steps=0"], "steps"),
    ],
)
def test_what_is_wrong_is_said(names: list[str], sets: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        chosen_editors(names, sets)
    assert len(caught.value.faults) == 1
