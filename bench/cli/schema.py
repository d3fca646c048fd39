"""`bench schema`: the JSON Schemas of what a run writes."""

import json

import click

from bench.analysis import json_schemas
from bench.cli.main import cli


@cli.command()
@click.argument("kind", type=click.Choice(list(json_schemas.SCHEMAS)))
def schema(kind: str) -> None:
    """Print the JSON Schema of a file of a run.

    KIND is table (table.json), records (one row of them) or provenance (provenance.json).
    """
    click.echo(json.dumps(json_schemas.SCHEMAS[kind](), indent=2))
