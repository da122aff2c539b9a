"""Resources and partitions of the assets: the lake, the training launcher, the recipes, and a readable console log."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg

from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.launch import Launcher
from cs_pipeline.recipe import recipe_names

RECIPES = dg.StaticPartitionsDefinition(recipe_names())
"""One partition per recipe. A new recipe file is a new partition once the code location is reloaded."""


class LakeResource(dg.ConfigurableResource):
    """The data lake in the folder ``root``; if that is empty, in CS_LAKE or the default folder, when a run starts."""

    root: str = ""

    @property
    def lake(self) -> DataLake:
        return DataLake(Path(self.root)) if self.root else DataLake.default()


@dg.logger(dg.Field(dg.Permissive({"log_level": dg.Field(str, is_required=False, default_value="INFO")})))
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """One line per message in the terminal: time, asset, text."""
    logger = logging.Logger("cs_pipeline", level=logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Line())
    # Dagster logs an error for every step that a failure skips. The command that runs the job prints the failure itself.
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    logger.addHandler(handler)
    return logger


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        text = str(meta.get("orig_message") or record.getMessage())
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        return f"{time.strftime('%H:%M:%S')}  {meta.get('step_key') or '':22} {mark}{text}"


RESOURCES: dict[str, Any] = {"lake": LakeResource(), "launcher": Launcher()}
