"""`python -m sparsecomp.cli`, where the command itself is not on the path."""

from sparsecomp.cli import main

main()
