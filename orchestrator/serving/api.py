"""What `/predict` takes and gives, for programs (OpenAPI) and people (Swagger UI, from its package: no network)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

TENSOR = {"inputs": [[[[0], [255]], [[128], [64]]]]}
REFUSALS = {
    "400": "no JSON, no whole picture, another form",
    "401": "no token, where one is needed",
    "403": "sent to a name that is not this server's",
    "413": "more bytes, pixels or pictures than are taken",
    "415": "another content type",
    "422": "another type or shape than the model takes; says what was expected and found",
    "503": "the queue is full; Retry-After says when to try again",
    "504": "no answer in time",
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _of_json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _said(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, **({"content": _of_json(schema)} if schema else {})}


_TEXT: dict[str, Any] = {"type": "string"}
_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_LIST: dict[str, Any] = {"type": "array", "items": {}}
_REFUSAL = _object(detail=_TEXT)
_INPUTS: dict[str, Any] = {
    **_object(inputs={"oneOf": [_LIST, {"type": "object", "additionalProperties": _LIST}]}),
    "description": "pictures (N, H, W, C) of numbers from 0 to 255, or rows (N, F), as MLflow's server takes them",
    "example": TENSOR,
}
_IMAGES = {**_object(images={"type": "array", "items": _TEXT}), "description": "PNG or JPEG files in base64"}
_ANSWER = {
    "oneOf": [
        _object(predictions={"type": "object", "additionalProperties": _LIST}, model=_TEXT, version=_TEXT),
        _object(predictions={"type": "array", "items": {"type": "object"}}, model=_TEXT, version=_TEXT),
    ],
    "description": "of a tensor: each of the graph's outputs; of pictures: what `orch predict` says of each",
}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.0.2",
    "info": {
        "title": "orch serve",
        "version": version("orch"),
        "description": "Answers of a promoted model. /health says which version answers.",
    },
    "paths": {
        "/predict": {
            "post": {
                "summary": "What the model says of pictures, or of a tensor",
                "operationId": "predict",
                "security": [{}, {"token": []}],
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {"schema": _object(file={"type": "array", "items": _FILE})},
                        **_of_json({"oneOf": [_INPUTS, _IMAGES]}),
                        **{kind: {"schema": _FILE} for kind in ("image/png", "image/jpeg", "application/octet-stream")},
                    },
                },
                "responses": {
                    "200": _said("the answers, and the version that gave them", _ANSWER),
                    **{code: _said(why, _REFUSAL) for code, why in REFUSALS.items()},
                },
            }
        },
        "/health": {
            "get": {
                "summary": "Which version answers, and what keeps a newer one from it",
                "operationId": "health",
                "security": [{}, {"token": []}],
                "responses": {"200": _said("status is ok, or behind while a newer version cannot be taken")},
            }
        },
        "/ready": {
            "get": {
                "summary": "Whether a request would be taken now",
                "operationId": "ready",
                "responses": {"200": _said("it would"), "503": _said("the queue is full")},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Figures for Prometheus",
                "operationId": "metrics",
                "security": [{}, {"token": []}],
                "responses": {"200": {"description": "figures", "content": {"text/plain": {"schema": _TEXT}}}},
            }
        },
    },
    "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>orch serve</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
PAGE_SCRIPT = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui"});\n'
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
