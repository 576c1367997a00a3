"""The templates of the report. Whatever is put into one is escaped, control characters too, unless it is Markup."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from arcft.names import visible
from arcft.reporting.words import count, duration, percent, plus_minus, points, spread


def render(template: str, **values: Any) -> Markup:
    """`template` (a file of reporting/html/templates) with `values`, as safe HTML."""
    return Markup(_environment().get_template(template).render(values))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("arcft.reporting.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count, "duration": duration, "percent": percent, "plus_minus": plus_minus, "points": points,
        "spread": spread,
    }  # fmt: skip
    return environment


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
