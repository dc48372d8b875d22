"""What a version must show before it may be the champion: the file mlflow/promotion.yaml, and its judgement.

Numbers are compared only where champion and challenger were measured on the same data.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from deepmoji.config import Section
from deepmoji.errors import UsageError
from deepmoji.provenance import UNKNOWN


class Significance(Section):
    """A drop refuses only if chance does not explain it.

    One-sided test of two shares that were measured on `rows` rows each (the name of a number), normal
    approximation; rows are taken as independent of each other, so a small paired difference passes.
    """

    level: Annotated[float, Field(gt=0, lt=0.5)]
    rows: str


class Gates(Section):
    """The gates of promotion.yaml.

    minimum: least value by number. maximum_drop: how far a number may fall below the champion's.
    required_tags: facts that must be known, as code and data. same_data: the tag that names the data which the
    numbers were measured on. significance: see there.
    """

    minimum: dict[str, float]
    maximum_drop: dict[str, Annotated[float, Field(ge=0)]]
    required_tags: list[str]
    same_data: str
    significance: Significance | None = None


def load_gates(path: Path) -> Gates:
    """Read promotion.yaml; UsageError names every problem of the file in one sentence."""
    try:
        return Gates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: it must name the gates of a promotion.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}): mend the file.") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, issue['loc'])) or 'the file'}: {issue['msg'].lower()}" for issue in error.errors()
        )
        known = ", ".join(Gates.model_fields)
        raise UsageError(f"{path} has {error.error_count()} problem(s): {problems}; its keys are {known}.") from None


def absolute_faults(gates: Gates, numbers: Mapping[str, float], tags: Mapping[str, str]) -> list[str]:
    """Why a version may not be champion whoever is: numbers that fall short, facts that are unknown."""
    faults = []
    for name, least in gates.minimum.items():
        value = numbers.get(name)
        if value is None or math.isnan(value):
            faults.append(f"the number {name} is not there, at least {least:g} is required")
        elif value < least:
            faults.append(f"{name} is {value:.4g}, at least {least:g} is required")
    unknown = [name for name in gates.required_tags if tags.get(name, "") in ("", UNKNOWN)]
    return faults + [f"the {name} that it was made from is unknown" for name in unknown]


def relative_faults(gates: Gates, numbers: Mapping[str, float], champion: Mapping[str, float]) -> list[str]:
    """Why a version may not follow this champion: numbers that fell too far."""
    faults = []
    for name, allowed in gates.maximum_drop.items():
        if name not in numbers or name not in champion:
            whose = "this version" if name not in numbers else "the champion"
            faults.append(f"the number {name} of {whose} is not there, so its drop is unknown")
            continue
        drop = champion[name] - numbers[name]
        if math.isnan(drop) or (drop > allowed and not _chance(gates.significance, name, numbers, champion)):
            faults.append(
                f"{name} fell from {champion[name]:.4g} to {numbers[name]:.4g}, "
                f"by {drop:.4g} where {allowed:g} is allowed"
            )
    return faults


def _chance(rule: Significance | None, name: str, numbers: Mapping[str, float], champion: Mapping[str, float]) -> bool:
    if rule is None:
        return False
    rows = numbers.get(rule.rows, 0.0)
    mean = (numbers[name] + champion[name]) / 2
    if rows < 1 or not 0 < mean < 1:
        return False  # not a share, or nobody knows of how many: the plain rule holds
    z = (champion[name] - numbers[name]) / math.sqrt(2 * mean * (1 - mean) / rows)
    return math.erfc(z / math.sqrt(2)) / 2 > rule.level
