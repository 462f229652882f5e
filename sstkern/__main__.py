"""`python -m sstkern` is `sstkern`."""

from sstkern.cli import app

app(prog_name="sstkern")
