"""`python -m jaxrl4lm.cli`: the command without its script."""

from jaxrl4lm.cli import main

raise SystemExit(main())
