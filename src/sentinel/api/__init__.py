"""What the command line can do, from Python: `Model` and one function for every command."""
