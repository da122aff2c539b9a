"""The OpenAPI document as a page at ``/docs``: FastAPI's own pages load their scripts from elsewhere."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties", "minimum", "maximum", "exclusiveMaximum")


def add_docs(app: FastAPI) -> None:
    """Adds the page to ``app``; it shows the routes that are there when it is asked for."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.globals |= {"kind": _kind, "limits": _limits}
    template = environment.get_template("docs.html.jinja")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        document = app.openapi()
        return HTMLResponse(template.render(info=document["info"], paths=document["paths"], schemas=_schemas(document)))


def _schemas(document: dict[str, Any]) -> dict[str, Any]:
    """What the routes take and give, by name."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    return schemas


def _kind(schema: dict[str, Any]) -> str:
    """A field's type in a few words: "string", "list of Turn", "number or null"."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def _limits(schema: dict[str, Any]) -> str:
    """The bounds of a field and of what it may be instead: "maxLength 8000"."""
    said = [f"{name} {schema[name]}" for name in _LIMITS if name in schema]
    return ", ".join([*said, *(part for one in schema.get("anyOf", []) if (part := _limits(one)))])
