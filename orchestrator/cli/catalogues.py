"""`orch recipes` and `orch studies`: what comes along, what is yours."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 (typer reads it at run time)
from typing import Annotated

import typer

from orchestrator.cli.shared import AsJson, MoreKeys, app, print_json
from orchestrator.errors import UsageError, printable

recipes_app = typer.Typer(help="List recipes, show their fields, copy one out for editing.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
studies_app = typer.Typer(
    help="List, show, check and copy study files, which say what is searched.", no_args_is_help=True
)
app.add_typer(studies_app, name="studies")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name, or a path to a .py file.", show_default=False)
]
StudyFileName = Annotated[str, typer.Argument(metavar="NAME", help="As of `orch studies ls`.", show_default=False)]


@recipes_app.command("ls")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: those that come along, and those of installed packages."""
    from orchestrator import catalogue, render

    rows = catalogue.rows()
    if as_json:
        return print_json(rows)
    return render.show_table(["recipe", "about"], [[row["recipe"], row["about"]] for row in rows])


@recipes_app.command("show", no_args_is_help=True)
def show_recipe(recipe: RecipeName, as_json: AsJson = False) -> None:
    """Show every field of a recipe: what it takes, its default, what is searched, and what it means."""
    from orchestrator import catalogue, render

    rows = catalogue.field_rows(catalogue.load(recipe))
    if as_json:
        return print_json(rows)
    return render.show_table(list(rows[0]), [list(row.values()) for row in rows])


@recipes_app.command("cp", no_args_is_help=True)
def copy_recipe(recipe: RecipeName, file: Annotated[Path, typer.Argument(show_default=False)]) -> None:
    """Copy a recipe to a file of yours, with its study file: orch recipes cp cnn my_cnn.py"""
    from orchestrator import catalogue

    for path in catalogue.copy(catalogue.load(recipe), file):
        print(f"written   {path}")
    print(f"next      orch sweep recipe={file}")


@recipes_app.command("check", no_args_is_help=True)
def check_recipe(
    recipe: RecipeName,
    keys: MoreKeys = None,
) -> None:
    """See that a recipe can learn one batch by heart: most mistakes in a model or a loss show here in seconds."""
    from orchestrator import check
    from orchestrator import study as studies

    learnt = check.overfit(studies.load([f"recipe={recipe}", *(keys or [])], single=True))
    went = f"loss {learnt.first_loss:.4g} to {learnt.last_loss:.4g} in {learnt.steps} steps"
    print(f"{recipe} learns one batch by heart: {went}")


@studies_app.command("ls")
def list_studies(as_json: AsJson = False) -> None:
    """List the study files: those of ./studies, and those that come along."""
    from orchestrator import render, study_catalogue

    rows = study_catalogue.rows()
    if as_json:
        return print_json(rows)
    lines = [[*row.values()] if row["searched"] is not None else [*{**row, "searched": "?"}.values()] for row in rows]
    return render.show_table(["study file", "recipe", "searched", "file"], lines)


@studies_app.command("show", no_args_is_help=True)
def show_study(name: StudyFileName, as_json: AsJson = False) -> None:
    """Show what a study file fixes and searches, under which conditions, and its constraints."""
    from orchestrator import render, study_catalogue

    shown = study_catalogue.show(name)
    if as_json:
        return print_json(shown)
    render.show_pairs({key: shown[key] for key in ("study", "recipe", "file")})
    render.show_table(["field", "fixed", "searched", "when"], study_catalogue.field_rows(shown))
    if shown["constraints"]:
        render.show_table(["constraint"], [[text] for text in shown["constraints"]])
    return None


@studies_app.command("validate", no_args_is_help=True)
def validate_studies(
    files: Annotated[list[str], typer.Argument(metavar="NAME|FILE…", show_default=False)],
    recipe: Annotated[str, typer.Option(help="The recipe, where the file's name does not begin with it.")] = "",
) -> None:
    """Hold study files against their recipes, all of them, without running anything."""
    from orchestrator import study_catalogue

    num_bad = 0
    for file in files:
        try:
            row = study_catalogue.validate(file, recipe)
            print(printable("fits      {file}: recipe {recipe}, {searched} field(s) searched".format_map(row)))
        except UsageError as error:
            num_bad += 1
            print(f"orch: {error}", file=sys.stderr)
    if num_bad:
        sys.exit(UsageError.exit_code)


@studies_app.command("cp", no_args_is_help=True)
def copy_study(name: StudyFileName, file: Annotated[Path | None, typer.Argument(show_default=False)] = None) -> None:
    """Copy a study file to ./studies, where it wins over the one that came along, or to a file of yours."""
    from orchestrator import study_catalogue

    print(f"written   {study_catalogue.copy(name, file)}")


@studies_app.command("schema", no_args_is_help=True)
def show_schema(recipe: RecipeName) -> None:
    """Print the JSON Schema of a recipe's study files, for editors."""
    from orchestrator import catalogue, study_catalogue

    print_json(study_catalogue.schema(catalogue.load(recipe)))
