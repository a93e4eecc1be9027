"""placeholder until the next commit"""

import click


@click.command()
def bench() -> None:
    pass
