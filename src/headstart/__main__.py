"""`python -m headstart` is the command `headstart`."""

from headstart.cli import command

if __name__ == "__main__":
    command()
