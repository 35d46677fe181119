"""Scopes and the order of parameters."""

from __future__ import annotations

import pytest
import torch

from fedpa.errors import ConfigError
from fedpa.federation.parameters import PERSONAL, SHARED, Block, Layout, Parameter, Scope, group


def parameter(name: str, *shape: int) -> Parameter:
    return Parameter(name, shape, torch.zeros(shape))


def rule(name: str) -> Scope:
    return {"s": SHARED, "p": PERSONAL, "g": group("city"), "h": group("age")}[name[0]]


def mixed() -> Layout:
    blocks = [
        Block("down", (parameter("p.a", 2, 3), parameter("g.a", 1, 3), parameter("s.a", 2, 3))),
        Block("s.bias", (parameter("s.bias", 2),)),
        Block("up", (parameter("p.b", 2, 2), parameter("h.b", 1, 2))),
    ]
    return Layout(blocks, rule, {"city": 4, "age": 2})


def test_sizes_and_scopes() -> None:
    layout = mixed()
    assert layout.size == 6 + 3 + 6 + 2 + 4 + 2
    assert layout.personal_size == 10
    assert layout.sizes_by_scope() == {"personal": 10, "shared": 8, "group(city)": 3, "group(age)": 2}
    assert [str(vector.scope) for vector in layout.uploaded] == ["group(city)", "shared", "group(age)"]
    assert [vector.values for vector in layout.uploaded] == [4, 1, 2]


def test_the_scopes_divide_the_flat_vector() -> None:
    layout = mixed()
    assert layout.personal is not None
    vectors = (*layout.uploaded, layout.personal)
    places = sorted(place for vector in vectors for span in vector.spans for place in range(span.begin, span.end))
    assert places == list(range(layout.size))
    shared = next(vector for vector in vectors if vector.scope == SHARED)
    assert [(span.begin, span.end) for span in shared.spans] == [(9, 17)]


def test_views_are_the_blocks_and_share_memory() -> None:
    layout = mixed()
    flat = torch.arange(2.0 * layout.size).view(2, -1)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "down": (2, 5, 3),
        "s.bias": (2, 2),
        "up": (2, 3, 2),
    }
    assert views["down"][1, 2].tolist() == (layout.size + torch.arange(6.0, 9.0)).tolist()
    views["up"][1, 2, 1] = -1.0
    assert flat[1, -1] == -1.0


def test_taking_and_putting_one_scope() -> None:
    layout = mixed()
    assert layout.personal is not None
    flat = torch.arange(2.0 * layout.size).view(2, -1)
    own = layout.personal.take(flat)
    assert own[0].tolist() == [0, 1, 2, 3, 4, 5, 17, 18, 19, 20]
    by_name = layout.personal.split(own)
    assert by_name["p.b"].shape == (2, 2, 2)
    assert by_name["p.b"][0].flatten().tolist() == [17, 18, 19, 20]
    blank = torch.zeros_like(flat)
    layout.personal.put(blank, own)
    assert torch.equal(layout.personal.take(blank), own)
    assert int((blank != 0).sum()) == 2 * 10 - 1
    for vector in layout.uploaded:
        assert not vector.take(blank).any()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="'s' is named twice"):
        Layout([Block("a", (parameter("s", 1),)), Block("b", (parameter("s", 1),))], rule, {})
    with pytest.raises(ConfigError, match=r"'h' is averaged by group 'age', which the data set lacks") as caught:
        Layout([Block("a", (parameter("h", 1),))], rule, {"city": 2})
    assert "city" in str(caught.value.fix)
    with pytest.raises(ConfigError, match=r"block a: parameters differ after their first axis.*\(1, 2\).*\(1, 3\)"):
        Block("a", (parameter("s", 1, 2), parameter("p", 1, 3)))


def test_scopes_read_well() -> None:
    assert [str(scope) for scope in (SHARED, PERSONAL, group("city"))] == ["shared", "personal", "group(city)"]
    assert str(Scope("shared", keeps=True)) == "shared, kept"
    assert str(Scope("group", "city", keeps=True)) == "group(city), kept"


def test_what_a_device_keeps_of_what_it_shares_is_counted_apart() -> None:
    blocks = [Block(name, (parameter(name, size),)) for name, size in (("s", 3), ("k", 5), ("p", 7))]
    layout = Layout(blocks, lambda name: Scope("shared", keeps=True) if name == "k" else rule(name), {})
    assert layout.sizes_by_scope() == {"shared": 3, "shared, kept": 5, "personal": 7}
