"""`python -m tidemill`: the command line, also how the supervisor starts roles."""

from tidemill.cli import main

main()
