"""The learning-rate schedule. Options: conf/scheduler/*.yaml, and a module here for each.

Every module of this folder is imported, so a new schedule is a module with its class and a YAML file.
"""

from __future__ import annotations

import importlib
import pkgutil

from arcft.config.scheduler.base import SchedulerConfig

__all__ = ["SchedulerConfig"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
