"""The resources, the partitions (one per recipe) and the console logger of the Dagster definitions."""

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
"""One partition per recipe. A new recipe file becomes a partition when the code location is reloaded."""


class LakeResource(dg.ConfigurableResource):
    """The data lake in the folder ``root``. If ``root`` is empty: in CS_LAKE, else in the default folder.

    CS_LAKE is read when ``lake`` is used, not when the definitions are loaded.
    """

    root: str = ""

    @property
    def lake(self) -> DataLake:
        return DataLake(Path(self.root)) if self.root else DataLake.default()


@dg.logger(dg.Field(dg.Permissive({"log_level": dg.Field(str, is_required=False, default_value="INFO")})))
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Logs to the terminal, one line per message: time, step, level (for a warning), text. Errors are left out."""
    logger = logging.Logger("cs_pipeline", level=context.logger_config["log_level"].upper())
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter())
    # After a failure Dagster logs an error for every skipped step. The command that runs the job prints the failure.
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    logger.addHandler(handler)
    return logger


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        text = str(meta.get("orig_message") or record.getMessage())
        level = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        return f"{time.strftime('%H:%M:%S')}  {meta.get('step_key') or '':22} {level}{text}"


RESOURCES: dict[str, Any] = {"lake": LakeResource(), "launcher": Launcher()}
