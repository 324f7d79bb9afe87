"""Say what the model in this folder makes of pictures: python predict.py photo.png folder/*.jpg

Or of the rows of CSV files, if that is what it was trained on. One line of JSON each. It needs what stands in
requirements.txt, and nothing of the program that trained the model; take over what you need of it.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def main(files: list[str]) -> None:
    """Print a line of JSON for each picture, or for each row of each table."""
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    about = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    for file in files:
        inputs = rows_of(file, about["columns"]) if about["columns"] else picture_of(file, about["channels"])
        output = "values" if about["task"] == "regression" else "probabilities"
        (answers,) = session.run([output], {session.get_inputs()[0].name: inputs})
        for answer in answers:
            print(json.dumps({"path": file, **told(answer, about)}, ensure_ascii=False))


def told(answer: Any, about: dict[str, Any]) -> dict[str, Any]:
    """What probabilities, or values, `(K,)` mean."""
    each = dict(zip(about["names"], map(float, answer), strict=True))
    if about["task"] == "classification":
        best = max(each, key=lambda name: each[name])
        return {"class": best, "probability": each[best]}
    if about["task"] == "multilabel":
        return {"labels": [name for name, probability in each.items() if probability > 0.5], "probabilities": each}
    return each


def picture_of(file: str, channels: int) -> Any:
    """A picture as `(1, H, W, channels)` uint8: upright, what is transparent on white. The model resizes it itself."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        is_grey = image.mode in {"1", "L", "LA", "La"}
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if is_grey else "RGB").convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(1, image.height, image.width, channels)


def rows_of(file: str, columns: list[dict[str, Any]]) -> Any:
    """The rows of a table as `(N, F)` float32: numbers as they are, words by their numbers, NaN for what is unknown."""
    with Path(file).open(newline="", encoding="utf-8-sig") as table:
        names, *lines = [[value.strip() for value in line] for line in csv.reader(table) if line]
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    return np.array([[number_of(row[column["name"]], column) for column in columns] for row in rows], np.float32)


def number_of(text: str, column: dict[str, Any]) -> float:
    """What the model is given for a value of a column."""
    if column["categories"]:
        return float(column["categories"].index(text)) if text in column["categories"] else float("nan")
    try:
        return float(text)
    except ValueError:
        return float("nan")


if __name__ == "__main__":
    main(sys.argv[1:])
