"""Settings of an adaptation: checked, frozen, unknown keys refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
import yaml
from pydantic import Field

from fedpa.errors import ConfigError

__all__ = ["Settings", "StrictSettings", "parse_assignments"]


class StrictSettings(pydantic.BaseModel):
    """Frozen settings that refuse unknown keys and say what is wrong in one error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str) -> Self:
        """Build from a mapping; every mistake is named in one error.

        Raises
        ------
        ConfigError
            Names each unknown or invalid key, what was found and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            raise ConfigError(f"{where}: " + "; ".join(map(cls._explain, error.errors()))) from None

    @classmethod
    def _explain(cls, error: Any) -> str:
        key = str(error["loc"][0]) if error["loc"] else "settings"
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, cls.model_fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(cls.model_fields))}"
            return f"unknown setting {key!r}; {hint}"
        return f"setting {key!r}: {error['msg']}, found {error['input']!r}"


class Settings(StrictSettings):
    """What every federated method shares. A method adds its own fields.

    Attributes
    ----------
    rounds : int
        Most rounds.
    patience : int
        Rounds without a better validation value before stopping; 0 never stops early.
    select : {"mean", "auc", "gauc", "logloss"}
        The validation value that picks the best round; ``mean`` is that of AUC and GAUC.
    participation : float
        Share of users in a round, drawn independently per user.
    epochs, batch_size : int
        Local epochs per round and rows per step.
    optimizer : {"adam", "sgd"}
        The local one.
    lr : float
        Local learning rate.
    keep_optimizer : bool
        Whether a device keeps Adam's moments from round to round; they never leave it. Otherwise fresh in every round.
    proximal : float
        Weight mu of the proximal term ``mu / 2 |w - w_downloaded|^2`` over what is shared (Li et al., *Federated
        Optimization in Heterogeneous Networks*, MLSys 2020, eq. 2).
    personal_decay : float
        Precision lambda of a normal prior around the start of what is personal: the term ``lambda / 2 |v - v_start|^2``
        beside the *sum* of a user's losses, so that it counts as much as lambda rows, many or few as the user has.
    weighting : {"users", "rows"}
        Whether a participant counts once or by its training rows.
    table_mean : {"participants", "touched"}
        What the change of a table's row is divided by: the weight of all participants, or of those whose data touch the
        row, whose number is then summed beside the change (MF-SecAvg of Perifanis & Efraimidis, 2022).
    table_prior : float
        Added to that number, so that a row which few touch moves less.
    visible : {"sum", "rows"}
        What the server may see of everything that is uploaded: what the method's scopes say, mostly the sum alone, or
        each participant's own change. For research; a deployment shows sums.
    aggregation : {"mean", "trimmed_mean", "median", "norm_bound"}
        How the participants' changes become one; but for the mean, see `fedpa.federation.robust`. Needs scopes whose
        rows are visible.
    trim : float
        Of ``trimmed_mean``: the share of participants left out at each end.
    norm_bound : float
        Of ``norm_bound``: the greatest length of a participant's whole change.
    server_optimizer : {"mean", "momentum", "adam"}
        How the server moves by the mean change: adds it, or takes it for a negative gradient (Reddi et al., *Adaptive
        Federated Optimization*, ICLR 2021, algorithm 2: FedAvgM and FedAdam, whose second moment starts at zero here).
    server_lr, server_momentum : float, float
        Its step size and the decay of its first moment.
    history : {"frozen", "online"}
        Which own rows a validation or test row may read: those before the cut, or all before the row itself. Online, a
        click lifts the user's next rows, which raises AUC over all rows and ruins it within users.
    item_counts : int
        Into how many periods devices count their training rows and clicks per item, once, before the first round; the
        sums over users join open users' counts wherever an item's click rate is read. 0 for none.
    personal_bias : bool
        A term added to the logit that each user learns and keeps.
    dtype : {"float32", "float64"}
        Of all computation and storage.
    """

    rounds: Annotated[int, Field(ge=0)] = 30
    patience: Annotated[int, Field(ge=0)] = 5
    select: Literal["mean", "auc", "gauc", "logloss"] = "mean"
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 1024
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    keep_optimizer: bool = False
    proximal: Annotated[float, Field(ge=0)] = 0.0
    personal_decay: Annotated[float, Field(ge=0)] = 0.0
    weighting: Literal["users", "rows"] = "users"
    table_mean: Literal["participants", "touched"] = "participants"
    table_prior: Annotated[float, Field(ge=0)] = 0.0
    visible: Literal["sum", "rows"] = "sum"
    aggregation: Literal["mean", "trimmed_mean", "median", "norm_bound"] = "mean"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    norm_bound: Annotated[float, Field(gt=0)] = 1.0
    server_optimizer: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: Annotated[float, Field(gt=0)] = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    history: Literal["frozen", "online"] = "frozen"
    item_counts: Annotated[int, Field(ge=0, le=1000)] = 0
    personal_bias: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as PyTorch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``key=value`` strings into a mapping; values are YAML, so ``lr=0.01``, ``groups=[a, b]`` work.

    Raises
    ------
    ConfigError
        If an assignment has no ``=`` or its value is not YAML.
    """
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected key=value", "for instance --set lr=0.01")
        try:
            parsed = yaml.safe_load(value)
            values[key.strip()] = float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: the value is not readable ({error})") from None
    return values


def _is_number(text: str) -> bool:
    """YAML 1.1 reads 1e-3 as text; people mean a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
